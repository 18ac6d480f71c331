"""`accuracy`: score a saved accuracy log, of this harness or another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from harness.accuracy import Accuracy, AccuracyLog
    from harness.benchmarks import Benchmark
    from harness.dataset import Samples, Tokenizer

PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class Source:
    """A log, and what it is to be scored against; `own` if this harness has written it, `sha256` of the dataset that it
    was then asked, and `trouble` of that run."""

    log: Path
    row: Benchmark
    dataset: str
    model: str
    asked: int | None = None
    own: bool = False
    sha256: str | None = None
    trouble: tuple[str, ...] = ()


@click.command()
@click.argument("where", metavar="DIR_OR_FILE", type=click.Path(path_type=Path, exists=True))
@click.option("--benchmark", help="Whose metrics and targets hold.  [default: the run's]")
@click.option("--dataset", help="What was asked: a file or hub id.  [default: the run's, else the benchmark's]")
@click.option("--model", help="Folder or hub id; its tokenizer decodes.  [default: the run's, else the benchmark's]")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "int32", "int64", "float32"]),
    default="auto",
    show_default=True,
    help="What the log's bytes are; auto finds it from them.",
)
@click.option("--partial", is_flag=True, help="Score a log that lacks samples, without a verdict.")
@click.option(
    "--compare",
    "earlier",
    metavar="EARLIER",
    type=PATH,
    help="An earlier run, or its accuracy_samples.parquet: what has changed, sample by sample.",
)
@click.option("--worst", type=click.IntRange(min=0), default=5, show_default=True, help="Worst samples to list.")
@click.option(
    "--output",
    metavar="FOLDER",
    type=PATH,
    help="Write accuracy.txt, accuracy.json and accuracy_samples.parquet there.",
)
@click.option("--json", "as_json", is_flag=True, help="End stdout with the result as one line of JSON.")
@click.option("--debug", is_flag=True, help="Tracebacks instead of sentences.")  # fmt: skip
def accuracy(
    where: Path,
    benchmark: str | None,
    dataset: str | None,
    model: str | None,
    dtype: str,
    partial: bool,
    earlier: Path | None,
    worst: int,
    output: Path | None,
    as_json: bool,
    debug: bool,
) -> int:
    """Score a saved mlperf_log_accuracy.json, of this harness or another; of a run's directory, the log in it.

    Nothing is written without --output; of a run that was not valid, no accuracy.txt. Exit code: 0 passed, or no target
    for this dataset, 2 usage, 3 cannot be scored or decided here, 4 the run was not valid, 5 below a target; 4 wins
    over 3 and 5.
    """
    from harness.accuracy import evaluate, find_scope, read_log, refuse_foreign
    from harness.accuracy import worst as worst_samples
    from harness.drift import compare, read_rows
    from harness.results import finite

    source = find_source(where, benchmark, dataset, model)
    before = read_rows(earlier) if earlier else None
    samples, tokenizer = load_samples(source, given=dataset is not None)
    log = read_log(source.log, dtype, tokenizer.size, strict=source.own)
    refuse_foreign(log, samples, tokenizer)
    refuse_partial(log, samples, partial)
    scope = find_scope(source.row, source.dataset, source.asked, len(samples))
    verdict = replace(evaluate(log, samples, tokenizer, source.row, scope), trouble=source.trouble)
    assert verdict.rows is not None
    low = worst_samples(verdict.rows, samples, worst)
    changes = compare(before, verdict.rows.columns(), worst) if before else None
    written = write(verdict, output) if output else None
    click.echo("\n".join(report(source, verdict, len(samples), low, changes)))
    if written is not None:
        click.echo("\n".join(f"Wrote {name}" for name in written) or f"{output} holds exactly these files already.")
        if source.trouble:
            click.echo("No accuracy.txt was written: the run was not valid.")
    if as_json:
        about = {"log": str(source.log), "benchmark": source.row.name, "run_trouble": list(source.trouble)}
        extra = {"worst": low, "compare": changes, "written": written}
        click.echo(json.dumps(finite(about | verdict.as_json() | extra), allow_nan=False))
    return verdict.exit_code


# -- what is scored against what --------------------------------------------------------------------------------------


def find_source(where: Path, benchmark: str | None, dataset: str | None, model: str | None) -> Source:
    """The log, and the run's own benchmark, dataset and model where no option says otherwise. Raises ConfigError or
    SetupError."""
    from harness import benchmarks, results
    from sut.errors import ConfigError

    log = find_log(where) if where.is_dir() else where
    saved = results.find(log.parent)
    run: Mapping[str, Any] = saved.content if saved else {}
    config = run.get("config", {})
    name = benchmark or config.get("benchmark")
    if name is None:
        raise ConfigError(
            f"{log.parent} has no result.json of this harness that says what was run: name the benchmark with "
            f"--benchmark, one of {', '.join(benchmarks.NAMES)}."
        )
    row = benchmarks.find(name)
    same = name == config.get("benchmark")
    asked = dataset or (config.get("dataset") if same else None) or row.dataset
    if asked is None:
        raise ConfigError(
            f"benchmark {name} ships no dataset: name the one that was asked with --dataset (MLCommons' is "
            f"{row.file_in('accuracy')})."
        )
    return Source(
        log=log,
        row=row,
        dataset=asked,
        model=model or (config.get("model") if same else None) or row.model,
        asked=config.get("samples"),
        own=bool(run),
        sha256=run.get("environment", {}).get("dataset_sha256") if same else None,
        trouble=trouble_of(run),
    )


def trouble_of(run: Mapping[str, Any]) -> tuple[str, ...]:
    """Why a run of this harness was not valid; empty if it was, and for another harness's."""
    reasons = tuple(run.get("invalid_reasons", ()))
    return reasons or (() if run.get("valid", True) else ("its result.json calls it so and gives no reason",))


def find_log(folder: Path) -> Path:
    """The log of a run's directory; of --mode submission, that of its accuracy part."""
    from harness.results import ACCURACY

    part = folder / "accuracy" / ACCURACY
    return part if part.exists() and not (folder / ACCURACY).exists() else folder / ACCURACY


def load_samples(source: Source, given: bool) -> tuple[Samples, Tokenizer]:
    """The samples that were asked, and the tokenizer. Raises SetupError, also for a dataset that has changed since the
    run; one that was named on purpose (`given`) may be another copy."""
    from harness.dataset import Tokenizer, load
    from harness.run import find_model
    from sut.errors import SetupError

    tokenizer = Tokenizer(find_model(source.model))
    samples = load(source.dataset, tokenizer, limit=source.asked, suffix=source.row.prompt_suffix)
    if source.sha256 not in (None, samples.sha256) and not given:
        raise SetupError(
            f"the dataset {source.dataset} is not what the run was asked: its SHA-256 differs from the one in "
            "result.json; name the right file with --dataset."
        )
    return samples, tokenizer


def refuse_partial(log: AccuracyLog, samples: Samples, partial: bool) -> None:
    """Raises SetupError: the reference scores a log that lacks samples without a word."""
    from sut.errors import SetupError

    missing = len(samples) - len(log.answers)
    if missing > 0 and not partial:
        first = next(index for index in range(len(samples)) if index not in log.answers)
        raise SetupError(
            f"{log.path} lacks {missing} of {len(samples)} samples (the first: {first}), and an accuracy is that of "
            "all of them: finish the run, or add --partial for scores without a verdict."
        )


def write(verdict: Accuracy, folder: Path) -> list[str]:
    """Save the files in a folder and name them; none if they are there. Raises ConfigError rather than change one."""
    from harness.accuracy import ROWS, as_files, other_files, save
    from sut.errors import ConfigError

    folder.mkdir(parents=True, exist_ok=True)
    if other := other_files(verdict, folder):
        raise ConfigError(f"{folder} holds another {other[0]}: choose another --output, nothing is overwritten.")
    files = [folder / name for name in (*as_files(verdict), ROWS)]
    if all(path.exists() for path in files):
        return []
    save(verdict, folder)
    return [str(path) for path in files]


# -- the text ---------------------------------------------------------------------------------------------------------


def report(
    source: Source,
    verdict: Accuracy,
    total: int,
    low: list[dict[str, Any]],
    changes: Mapping[str, Any] | None,
) -> list[str]:
    from harness.report import accuracy_lines

    what = f"{verdict.samples:,} of {total:,} samples, {verdict.dtype} ids"
    lines = [f"{source.row.name} · {source.log}: {'NOT VALID, ' * bool(source.trouble)}{what}"]
    lines += [f"  ! the run was not valid: {reason}" for reason in source.trouble]
    lines += accuracy_lines(verdict.as_json())
    if changes is not None:
        lines += ["", *change_lines(changes)]
    if low:
        lines += ["", "  worst samples", *(line for row in low for line in sample_lines(row))]
    return lines


def sample_lines(row: Mapping[str, Any]) -> list[str]:
    scores = ", ".join(f"{name} {value:.2f}" for name, value in row.items() if name.startswith("rouge"))
    head = f"  {row['sample_index']} ({row['id']}): {scores}, {row['output_tokens']} tokens"
    return [head, f"      answer     {row['answer']}", f"      reference  {row['reference']}"]


def change_lines(changes: Mapping[str, Any]) -> list[str]:
    """What differs from an earlier run; an interval that holds 0 means that noise may have done it."""
    lines = [
        f"  {changes['changed']:,} of {changes['samples']:,} shared samples have another answer than earlier "
        f"({changes['only_before']:,} were answered only then, {changes['only_now']:,} only now)",
        f"  {'':<20}{'earlier':>12}{'now':>12}{'difference':>12}   95 % of it (paired, normal approximation)",
    ]
    for name, values in {**changes["metrics"], "output_tokens": changes["output_tokens"]}.items():
        low, high = values["interval"]
        lines.append(
            f"  {name:<20}{values['before']:>12.4f}{values['now']:>12.4f}{values['difference']:>+12.4f}   "
            f"{low:+.4f} to {high:+.4f}{'' if low <= 0 <= high else '   changed'}"
        )
    lengths = changes["output_tokens"]
    if lengths["ratio"] is not None:
        low, high = lengths["ratio_interval"]
        lines.append(f"  answers are {lengths['ratio']:.4f} times as long ({low:.4f} to {high:.4f})")
    if changes["drops"]:
        lines.append("  largest drops of the mean ROUGE of a sample")
    lines += [
        f"    {drop['sample_index']} ({drop['id']}): {drop['before']:.2f} to {drop['now']:.2f}"
        for drop in changes["drops"]
    ]
    return lines
