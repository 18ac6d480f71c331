"""How the answers of a run differ from those of an earlier one, sample by sample.

Both sides are the columns of accuracy_samples.parquet. Differences are paired: the noise that both runs share, such as
how hard a question is, cancels out. Intervals are of 95 % by the normal approximation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.accuracy import ROWS, Floats, interval
from harness.tables import whole_parquet
from sut.errors import SetupError

_NEEDED = ("sample_index", "id", "output_tokens", "crc32")


def read_rows(place: Path) -> dict[str, Any]:
    """The columns that an earlier run saved: its directory, that of a submission's runs, or the file itself. Raises
    SetupError."""
    import pyarrow as pa

    path = place / ROWS if place.is_dir() else place
    if not path.exists() and (place / "accuracy" / ROWS).is_file():
        path = place / "accuracy" / ROWS
    if not path.is_file():
        raise SetupError(f"{path} is not there: score that run first, with `accuracy {place} --output FOLDER`.")
    table = whole_parquet(path)
    if lacking := [name for name in _NEEDED if name not in table.column_names]:
        raise SetupError(f"{path} has no column {lacking[0]!r}: name a file {ROWS}, or a run that has one.")
    numbers = ["sample_index", "output_tokens", "crc32", *(name for name in table.column_names if _is_score(name))]
    for name in numbers:
        kind = table[name].type
        right = pa.types.is_integer(kind) or (pa.types.is_floating(kind) and _is_score(name))
        if not right or table[name].null_count:
            raise SetupError(
                f"{path}: the column {name!r} is of type {kind}{' with gaps' * right}, and "
                f"{'a number' if _is_score(name) else 'a whole number'} is due in each row: score that run again."
            )
    return {"id": table["id"].to_pylist()} | {name: table[name].to_numpy() for name in numbers}


def _is_score(column: str) -> bool:
    return column.startswith("rouge")


def compare(before: Mapping[str, Any], now: Mapping[str, Any], count: int) -> dict[str, Any]:
    """What has changed in the samples that both have, with the `count` largest drops. Raises SetupError if both are not
    of the same dataset."""
    places = {int(index): at for at, index in enumerate(before["sample_index"])}
    shared = [(places[int(index)], at) for at, index in enumerate(now["sample_index"]) if int(index) in places]
    if not shared:
        raise SetupError("the earlier run has answered none of these samples: there is nothing to compare.")
    for old, new in shared:
        if before["id"][old] != now["id"][new]:
            raise SetupError(
                f"sample {now['sample_index'][new]} is {before['id'][old]!r} in the earlier run and {now['id'][new]!r} "
                "in this one: they were asked different datasets."
            )
    olds, news = np.array(shared).T

    def both(name: str) -> tuple[Floats, Floats]:
        return np.asarray(before[name], np.float64)[olds], np.asarray(now[name], np.float64)[news]

    metrics = [name for name in now if _is_score(name) and name in before]
    return {
        "samples": len(shared),
        "only_before": len(places) - len(shared),
        "only_now": len(now["sample_index"]) - len(shared),
        "changed": int(np.count_nonzero(np.asarray(before["crc32"])[olds] != np.asarray(now["crc32"])[news])),
        "metrics": {name: difference(*both(name)) for name in metrics},
        "output_tokens": difference(*both("output_tokens")) | ratio(*both("output_tokens")),
        "drops": largest_drops([both(name) for name in metrics], now, news, count),
    }


def difference(before: Floats, now: Floats) -> dict[str, Any]:
    low, high = interval(now - before)
    return {
        "before": float(before.mean()),
        "now": float(now.mean()),
        "difference": float((now - before).mean()),
        "interval": [low, high],
    }


def ratio(before: Floats, now: Floats) -> dict[str, Any]:
    """Of the means, its interval by linearisation."""
    if not before.any():
        return {"ratio": None, "ratio_interval": None}
    mean = float(now.mean() / before.mean())
    low, high = interval((now - mean * before) / before.mean())
    return {"ratio": mean, "ratio_interval": [mean + low, mean + high]}


def largest_drops(
    pairs: list[tuple[Floats, Floats]], now: Mapping[str, Any], news: npt.NDArray[np.int64], count: int
) -> list[dict[str, Any]]:
    """The samples whose mean ROUGE has fallen most, the largest fall first."""
    if not pairs:
        return []
    old, new = (np.mean([pair[side] for pair in pairs], axis=0) for side in (0, 1))
    falls = [int(at) for at in np.argsort(new - old, kind="stable")[:count] if new[at] < old[at]]
    return [
        {
            "sample_index": int(now["sample_index"][news[at]]),
            "id": now["id"][news[at]],
            "before": float(old[at]),
            "now": float(new[at]),
        }
        for at in falls
    ]
