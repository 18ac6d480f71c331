"""`report`: one HTML file from any results."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.argument(
    "folders", metavar="DIR…", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option("--output", type=PATH, default=Path("report.html"), show_default=True, help="The file to write.")
@click.option("--figures", metavar="FOLDER", type=PATH, help="Write the charts there too, for a paper.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["svg", "png"]),
    default="svg",
    show_default=True,
    help="Of --figures; beside each its Vega-Lite specification.",
)
@click.option(
    "--texts/--no-texts", default=True, show_default=True, help="Prompts, answers and references of accuracy runs."
)
@click.option("--model", help="Where the model's folder lies, if not where it lay at the run.")
@click.option("--dataset", help="Where the dataset's file lies, if not where it lay at the run.")
@click.option("--debug", is_flag=True, help="Tracebacks instead of sentences.")
def report(
    folders: tuple[Path, ...],
    output: Path,
    figures: Path | None,
    form: str,
    texts: bool,
    model: str | None,
    dataset: str | None,
    debug: bool,
) -> int:
    """Tell results as one HTML file: runs, folders of --mode submission, studies.

    The file loads nothing from anywhere. An earlier report is written over, no other file is. Exit code: 0 written, 2
    usage, 3 a result that is damaged.
    """
    from harness.page.document import Options, build, refuse_foreign
    from harness.page.source import read
    from harness.results import write_whole

    refuse_foreign(output)
    sources = [read(folder) for folder in folders]
    if figures is not None:
        from harness.page.plates import save

        click.echo("\n".join(f"Wrote {path}" for path in save(sources, figures, form)))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, build(sources, Options(texts, model, dataset)))
    click.echo(f"Wrote {output} ({output.stat().st_size / 1e6:,.1f} MB)")
    return 0
