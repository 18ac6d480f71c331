"""`run`: one LoadGen test from start to finish."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from sut.errors import SetupError

F = TypeVar("F", bound=Callable[..., Any])


def pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`K=V` options as a mapping."""
    table = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{value!r} is not of the form KEY=VALUE.")
        table[key.strip()] = text
    return table


def engine_arguments(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """`K=V` options for an engine: values are JSON where they can be read as such, keys take - or _."""
    return {key.replace("-", "_"): literal(text) for key, text in pairs(context, parameter, values).items()}


def literal(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    try:
        return json.loads(text)
    except ValueError:
        return text


def interval(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Tokens per frame; None for auto, as few frames as can be."""
    if value in (None, "auto"):
        return None
    if not str(value).isdigit() or int(str(value)) < 1:
        raise click.BadParameter(f"{value!r} is neither a whole number of at least 1 nor auto.")
    return int(str(value))


PATH = click.Path(path_type=Path)
EXISTING = click.Path(path_type=Path, exists=True, dir_okay=False)
SECONDS = click.FloatRange(min=0, min_open=True)
COUNT = click.IntRange(min=1)

_OPTIONS = [
    click.option("--scenario", required=True, help="Offline, Server, SingleStream, MultiStream or Interactive."),
    click.option("--mode", default="performance", show_default=True,
                 help="performance, accuracy, or submission: both and the compliance tests."),
    click.option("--benchmark", default="demo", show_default=True, help="Whose rules hold; any other name lists them."),
    click.option("--model", help="Folder or hub id; the tokenizer comes from it.  [default: the benchmark's]"),
    click.option("--dataset", help="JSONL, JSON, parquet, MLCommons' pickle or a hub id; raw rows or processed.  "
                                   "[default: the benchmark's]"),
    click.option("--audit-dataset", help="The samples of gpt-oss-120b's TEST07, in submission mode."),
    click.option("--backend", help="vllm (in this process), ray (on a Ray cluster), remote (behind HTTP) or echo "
                                   "(simulator).  "
                                   "[default: remote with --endpoint or --serve, else vllm]"),
    click.option("--replicas", type=COUNT, help="Engines or servers to start.  [default: 1]"),
    click.option("--serve", is_flag=True, help="Start that many `vllm serve` here, use them, stop them."),
    click.option("--endpoint", multiple=True, metavar="URL",
                 help="A remote replica (/v1 is added); may be repeated.  API key: LOADGEN_HARNESS_API_KEY."),
    click.option("--served-model", help="What the replicas call the model.  [default: what /v1/models lists]"),
    click.option("--dialect", help="vllm, openai, sglang or tgi.  [default: probed]"),
    click.option("--offline-batch", type=COUNT, default=1, show_default=True, help="Prompts per Offline request."),
    click.option("--ca-file", type=EXISTING, help="Certificates to trust for https.  [default: the system's]"),
    click.option("--insecure", is_flag=True, help="Do not verify certificates; recorded in the result."),
    click.option("--ready-timeout", type=SECONDS, default=1800.0, show_default=True,
                 help="Seconds that --serve waits for its servers."),
    click.option("--ray-address", metavar="ADDRESS",
                 help="auto (the cluster this machine belongs to), local (one started here), HOST:PORT.  "
                      "[default: auto]"),
    click.option("--engine-arg", multiple=True, callback=engine_arguments, metavar="K=V",
                 help="For the engine, such as max_num_seqs=64; may be repeated."),
    click.option("--engine-env", multiple=True, callback=pairs, metavar="K=V",
                 help="Environment variable of the engine; may be repeated."),
    click.option("--dispatch", default="auto", show_default=True,
                 help="auto (pull in Offline, least-outstanding in a closed loop, else round-robin), pull, "
                      "round-robin, least-outstanding, least-tokens, power-of-two."),
    click.option("--max-in-flight", type=COUNT, help="Queries in flight per replica; further ones wait for it."),
    click.option("--concurrency", type=COUNT, metavar="N",
                 help="Offline as a closed loop: N queries in flight in all, latencies from each one's release."),
    click.option("--stream-interval", callback=interval,
                 help="Tokens per frame after the first; 1 gives inter-token latencies of engines in this process.  "
                      "[default: auto, as few frames as can be]"),
    click.option("--user-conf", type=EXISTING, help="LoadGen settings.  [default: the project's user.conf]"),
    click.option("--audit-config", type=EXISTING, help="LoadGen's audit file for a compliance run."),
    click.option("--target-qps", type=float,
                 help="Load that Server offers; the samples/s that Offline expects.  [LoadGen's own: 1]"),
    click.option("--min-duration", type=click.FloatRange(min=0), help="Seconds that the test lasts at least."),
    click.option("--min-queries", type=COUNT, help="Queries that the test has at least (Offline: samples)."),
    click.option("--samples", type=COUNT, help="Load only the first N of the dataset."),
    click.option("--resume", is_flag=True, help="Go on with the interrupted accuracy test in --output-dir."),
    click.option("--no-telemetry", is_flag=True,
                 help="No timeline.parquet: replicas, devices and the client are not read each second."),
    click.option("--first-token-timeout", type=SECONDS, help="Seconds until a query without a first token has failed."),
    click.option("--stall-timeout", type=SECONDS, default=300.0, show_default=True,
                 help="Seconds without any progress until a test is aborted; with --stream-interval also per answer."),
    click.option("--request-timeout", type=SECONDS, help="Seconds until an incomplete query has failed."),
    click.option("--failure-policy", default="strict", show_default=True,
                 help="strict retries nothing; resilient serves a query elsewhere while it has no first token."),
    click.option("--output-dir", type=PATH, help="Where the files go.  [default: results/<time>-…]"),
]  # fmt: skip


def run_options(command: F) -> F:
    """The options of `run`, which every study takes too."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def talk_options(command: F) -> F:
    """How a command tells what it does."""
    for option in (
        click.option("--debug", is_flag=True, help="Tracebacks instead of sentences."),
        click.option("--dry-run", is_flag=True, help="Resolve, check and print; start nothing."),
        click.option("--quiet", is_flag=True, help="No progress."),
        click.option("--json", "as_json", is_flag=True, help="End stdout with the result as one line of JSON."),
    ):
        command = option(command)
    return command


@click.command()
@run_options
@click.option("--mlflow-uri", metavar="URI", help="Keep the result in this MLflow store too.")
@talk_options
def run(as_json: bool, quiet: bool, dry_run: bool, debug: bool, mlflow_uri: str | None, **options: Any) -> int:
    """Run one LoadGen test.

    Exit code: 0 all good or no target, 2 usage, 3 set-up or not decided here, 4 not valid, 5 accuracy or compliance
    not met, 130 interrupted.
    """
    from harness.config import doubts, resolve
    from harness.run import check
    from harness.signals import raise_on_signals

    raise_on_signals()
    config, samples, tokenizer = check(resolve(**options))
    for doubt in doubts(config, len(samples)):
        click.echo(f"warning: {doubt}", err=True)
    if dry_run:
        return show_plan(config, samples, tokenizer, as_json)
    if mlflow_uri is None:
        return run_and_report(config, samples, tokenizer, as_json, quiet)
    from harness.tracking import keep_folder, open_store

    store = open_store(mlflow_uri)  # before hours of work
    code = run_and_report(config, samples, tokenizer, as_json, quiet)
    try:
        keep_folder(config.output_dir, store)
    except SetupError as error:
        click.echo(f"error: {error}", err=True)
        return code or 3
    return code


def show_plan(config: Any, samples: Any, tokenizer: Any, as_json: bool) -> int:
    from harness.run import dry_run

    plan = dry_run(config, samples, tokenizer)
    click.echo(json.dumps(plan, indent=None if as_json else 2))
    return 0


def run_and_report(config: Any, samples: Any, tokenizer: Any, as_json: bool, quiet: bool) -> int:
    from harness import report
    from harness.progress import Progress
    from harness.run import open_sut, run_test

    if config.mode == "submission":
        return run_parts_and_report(config, samples, tokenizer, as_json, quiet)
    with Progress(quiet) as progress, open_sut(config, samples, tokenizer, progress) as system:
        result = run_test(config, system, progress)
    say(report.as_text(result), result.exit_code == 0, report.as_json_line(result) if as_json else None)
    return result.exit_code


def run_parts_and_report(config: Any, samples: Any, tokenizer: Any, as_json: bool, quiet: bool) -> int:
    from harness import parts
    from harness.folder import refuse_used
    from harness.progress import Progress
    from harness.run import open_sut

    planned = parts.plan(config)
    for part in planned.values():  # before hours of work
        refuse_used(part)
    others = parts.load_others(planned, tokenizer)
    with Progress(quiet) as progress, open_sut(config, samples, tokenizer, progress) as system:
        results = parts.run_parts(config, planned, system, others, progress)
    code = parts.exit_code(results)
    line = json.dumps({"exit_code": code, **parts.summary(config, planned, results)}) if as_json else None
    say(parts.as_text(config, planned, results), code == 0, line)
    return code


def say(text: str, good: bool, line: str | None) -> None:
    """Print a verdict, its first line in colour on a terminal, and the result as one last line of JSON."""
    verdict, rest = text.split("\n", 1)
    if sys.stdout.isatty():
        verdict = click.style(verdict, fg="green" if good else "red", bold=True)
    with suppress(BrokenPipeError):  # whoever read stdout has gone; the result is on disk and the verdict stands
        print("\n".join([verdict, rest] + ([line] if line else [])), flush=True)
