"""A run's folder: made, refused where something would be written over, cleared of what an interrupted test left."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from harness import accuracy, results, telemetry
from harness.audits import AUDITS
from harness.conf import CONF_HEAD, conf_text
from harness.config import AUDIT_FILE, USER_CONF, RunConfig
from harness.journal import JOURNAL
from sut.errors import ConfigError, SetupError

WRITTEN = (
    *results.LOGS,
    results.RESULT,
    results.SUBMISSION,
    "samples.parquet",
    telemetry.FILE,
    JOURNAL,
    accuracy.TEXT,
    accuracy.JSON,
    accuracy.ROWS,
    *sorted({audit.verdict for audit in AUDITS.values()}),
)
"""What a run writes beside the settings: a folder with one of these holds a run."""


def prepare_folder(config: RunConfig) -> None:
    """Make the output directory with the settings that LoadGen reads. Raises SetupError if it cannot be written,
    ConfigError if it holds a run's files, or any that a run would write over."""
    folder = config.output_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if config.resume:
            set_aside(folder)
        refuse_used(config)
        (folder / USER_CONF).write_text(conf_text(config.loadgen_model, config.loadgen_scenario, config.settings))
        if config.audit_text is not None:
            (folder / AUDIT_FILE).write_text(config.audit_text)
    except OSError as error:
        raise SetupError(f"cannot write to the output directory {folder}: {error.strerror}.") from error


def refuse_used(config: RunConfig) -> None:
    """Raises ConfigError for an output directory in which something would be overwritten."""
    folder, own = config.output_dir, {USER_CONF} | ({JOURNAL} if config.resume else set())
    found = next((name for name in WRITTEN if name not in own and (folder / name).exists()), None)
    found = found or next((name for name in (USER_CONF, AUDIT_FILE) if is_anothers(config, folder / name)), None)
    if found is not None:
        hint = ""
        if config.mode == "accuracy" and (folder / JOURNAL).exists():
            hint = f" (or go on with it: --mode accuracy --resume --output-dir {folder})"
        raise ConfigError(
            f"{folder} already holds a run's {found}: choose another --output-dir{hint}, nothing is overwritten."
        )


def is_anothers(config: RunConfig, path: Path) -> bool:
    """Whether a settings file is there that no run of this harness has written."""
    if (path.name == AUDIT_FILE and config.audit_text is None) or not path.exists():
        return False
    return not path.read_text(errors="replace").startswith((CONF_HEAD, config.audit_text or CONF_HEAD))


def set_aside(folder: Path) -> None:
    """Move what an interrupted test has written into a folder of its own: nothing is overwritten."""
    old = next(path for number in count(1) if not (path := folder / f"interrupted-{number}").exists())
    for name in WRITTEN:
        if name != JOURNAL and (folder / name).exists():
            old.mkdir(exist_ok=True)
            (folder / name).rename(old / name)
