"""`layouts`: the same work in different shapes."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from harness.cli.study import conclude, going_on, show_study, study_options

NOT_VALID = 4


@click.command()
@click.option(
    "--vary",
    multiple=True,
    metavar="OPTION=A,B,C",
    help="Values of an option, such as replicas=1,2 or engine_arg.max_num_seqs=64,256; several: every combination.",
)
@click.option("--layout", "named", multiple=True, metavar="'NAME: OPTION=VALUE …'", help="One layout; may be repeated.")
@click.option(
    "--devices",
    type=click.IntRange(min=1),
    help="Leave out what takes another number: replicas × tensor, pipeline and data parallel.",
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of each, in turn: A B A B."
)
@click.option("--accuracy", is_flag=True, help="Score the answers too; changes are against the first layout.")
@click.option("--no-offline", is_flag=True, help="The scenario alone, without an Offline run beside it.")
@click.option(
    "--offline-qps",
    type=click.FloatRange(min=0, min_open=True),
    help="The samples/s that Offline expects, where --target-qps is the scenario's.",
)
@click.option(
    "--noise",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="PERCENT",
    help="Where nothing is repeated, smaller differences are chance.",
)
@study_options(scenario="Server")
def layouts(
    vary: tuple[str, ...],
    named: tuple[str, ...],
    devices: int | None,
    repeats: int,
    accuracy: bool,
    no_offline: bool,
    offline_qps: float | None,
    noise: float,
    as_json: bool,
    quiet: bool,
    dry_run: bool,
    debug: bool,
    **options: Any,
) -> int:
    """Compare layouts: replicas × tensor parallelism, dispatch, max_num_seqs, dtype, quantisation.

    \b
    layouts --devices 8 --vary replicas=1,2,4,8 --vary engine_arg.tensor_parallel_size=1,2,4,8
    layouts --accuracy --layout 'bf16:' --layout 'fp8: engine_arg.quantization=fp8'

    Each layout runs in processes of its own: Offline for throughput, --scenario (Server) for latencies under load; with
    --concurrency one run gives both.
    Exit code: 4 if no layout could be measured.
    """  # fmt: skip
    from harness.cli.variants import read_axes, read_variant
    from harness.config import default_output
    from harness.progress import Progress
    from harness.run import check
    from harness.signals import raise_on_signals
    from harness.studies.layouts import WORK, Plan, leave_out, plan_tests, run_layouts, schedule
    from harness.studies.study import open_study
    from harness.studies.variants import question_of, refuse_clashes, resolve_variant
    from sut.errors import ConfigError

    raise_on_signals()
    given = click.get_current_context().get_parameter_source("scenario") is not ParameterSource.DEFAULT
    if options["concurrency"] is not None and not given:
        options["scenario"] = "Offline"  # a closed loop is Offline with a cap
    folder = options.pop("output_dir", None) or default_output(options["benchmark"], options["scenario"], "layouts")
    listed = [*(read_variant(text, WORK) for text in named), *read_axes(vary, WORK)]
    if len(listed) < 2:
        raise ConfigError("name at least two layouts: --vary OPTION=A,B, or --layout 'NAME: OPTION=VALUE' twice.")
    refuse_clashes(listed)
    listed = leave_out(listed, options, devices)
    tests = plan_tests(options, not no_offline, accuracy, offline_qps)
    plan = Plan(listed, tests, options["scenario"], repeats, noise / 100)
    kept = [layout for layout in listed if layout.reason is None]
    if not kept:
        raise ConfigError(f"all {len(listed)} layouts are left out; the first: {listed[0].name} {listed[0].reason}.")
    config, _, _ = check(resolve_variant({**options, "output_dir": folder}, kept[0]))
    question = {
        "layouts": {layout.name: question_of(resolve_variant(options, layout), layout) for layout in listed},
        "devices": devices, "repeats": repeats, "accuracy": accuracy, "no_offline": no_offline,
        "offline_qps": offline_qps, "noise": noise,
    }  # fmt: skip
    if dry_run:
        return show_study(config, question, [point.name for point in schedule(plan)], as_json)
    with going_on(folder), open_study("layouts", config, question) as study, Progress(quiet) as progress:
        found = run_layouts(study, plan, progress)
    return conclude(study, found, as_json, 0 if any(row["valid"] for row in found.rows) else NOT_VALID)
