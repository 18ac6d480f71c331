"""Charts as they are drawn: each fails by its own faults alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.figures import save

GOOD = {"data": {"values": [{"x": 1, "y": 2}]}, "mark": "bar", "encoding": {"x": {"field": "x"}, "y": {"field": "y"}}}
BAD = {**GOOD, "mark": {"type": "point", "href": "javascript:alert(1)"}}


@pytest.mark.parametrize("form", ["svg", "png"])
def test_a_chart_is_drawn_after_one_that_cannot_be(form: str, tmp_path: Path) -> None:
    """The library throws what it still holds of one at the next, now once, now twice."""
    for number in range(20):
        with pytest.raises(ValueError):
            save(BAD, tmp_path / f"bad.{form}")
        save(GOOD, tmp_path / f"{number}.{form}")
        assert (tmp_path / f"{number}.{form}").stat().st_size > 500
