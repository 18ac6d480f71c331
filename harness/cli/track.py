"""`track`: saved results into a team's MLflow store."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folders", nargs=-1, required=True, metavar="DIR…", type=click.Path(path_type=Path))
@click.option("--mlflow-uri", required=True, metavar="URI", help="Tracking server (http://…) or folder (file:…).")
@click.option("--debug", is_flag=True, help="Tracebacks instead of sentences.")
def track(folders: tuple[Path, ...], mlflow_uri: str, debug: bool) -> int:
    """Keep results in MLflow: of runs, of studies, of submissions.

    Exit code: 0 kept, 2 usage or no result there, 3 a damaged one, or a store that does not take it.
    """
    from harness.tracking import keep_folder, open_store

    store = open_store(mlflow_uri)
    for folder in folders:
        count = keep_folder(folder, store)
        click.echo(f"{folder}: {count} result{'s' * (count > 1)} kept")
    return 0
