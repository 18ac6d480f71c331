"""`compare` as a user meets it: what it prints, writes, refuses, and the code it leaves with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.cli import call
from tests.harness.studies.made_runs import save, save_release


class Said(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out.splitlines()[-1])


Compare = Callable[..., Said]


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Compare:
    def run(*words: str | Path) -> Said:
        code = call(["compare", *map(str, words)])
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return run


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return save_release(tmp_path / "old", range(4))


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    return save_release(tmp_path / "slow", range(10, 14), slower=1.2)


def test_two_releases_are_compared_and_written(compare: Compare, old: Path, slow: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    said = compare(old, slow, "--json", "--output-dir", tmp_path / "out")
    assert (said.code, said.err) == (0, "")
    assert "slow against old: worse in " in said.out
    assert "tpot_s.p50 (+" in said.out
    assert said.json["study"] == "compare"
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"findings.json", "table.csv", "figure.svg"}
    assert json.loads((tmp_path / "out" / "findings.json").read_text()) == said.json
    assert (tmp_path / "out" / "figure.svg").read_text().startswith("<svg")
    assert {path: path.read_bytes() for path in before} == before  # what is compared is only read


@pytest.mark.parametrize(
    ("gate", "code"), [("tpot_s.p50:60%", 0), ("tpot_s.p50:5%", 5), ("tpot_s.p50:20%", 3), ("ttft_s.p50:0%", 5)]
)
def test_a_gate_decides_the_exit_code(compare: Compare, old: Path, slow: Path, gate: str, code: int) -> None:
    assert compare(old, slow, "--gate", gate).code == code


def test_a_gate_of_two_single_runs_cannot_be_decided(compare: Compare, tmp_path: Path) -> None:
    said = compare(save(tmp_path / "a", 1), save(tmp_path / "b", 2), "--gate", "tpot_s.p50:5%")
    assert said.code == 3
    assert "repeat both releases" in said.out


def test_a_history_takes_names_and_any_number(compare: Compare, old: Path, slow: Path) -> None:
    said = compare(f"v1={old}", f"v2={slow}", f"v3={old}", "--metric", "tpot_s.p50")
    assert said.code == 0
    assert "v3 against v1: the same in tpot_s.p50." in said.out


def test_a_run_that_is_not_valid_has_no_figures(compare: Compare, old: Path, tmp_path: Path) -> None:
    bad = save(tmp_path / "bad", 9, valid=False, invalid_reasons=["3 of 400 queries failed"])
    said = compare(old, bad)
    assert (said.code, said.out) == (4, "")
    assert said.err.startswith(f"error: {bad} is NOT VALID, and has no figures to compare: 3 of 400 queries failed;")
    assert said.err.count("\n") == 1
    forced = compare(old, bad, "--allow-invalid")
    assert forced.code == 0
    assert f"NOT VALID: {bad}" in forced.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gate", "ttft_s.p99"], "is not of the form FIGURE:LIMIT"),
        (["--gate", "nothing:5%"], "no figure 'nothing'"),
        (["--metric", "nothing"], "no figure 'nothing'"),
        (["--axis", "nothing"], "no result has such a key"),
        (["--margin", "two"], "is not a percentage such as 2%"),
        (["--margin", "0%"], "is not a percentage such as 2%"),
        (["--margin", "nan%"], "is not a percentage such as 2%"),
    ],
)
def test_a_slip_is_one_sentence(compare: Compare, old: Path, slow: Path, words: list[str], said: str) -> None:
    found = compare(old, slow, *words)
    assert (found.code, found.out, found.err.count("\n")) == (2, "", 1)
    assert said in found.err


def test_unlike_runs_are_refused_until_the_axis_is_named(compare: Compare, old: Path, tmp_path: Path) -> None:
    other = save_release(tmp_path / "other", [5, 6], config={"engine_arg": {"max_num_seqs": 64}})
    said = compare(old, other)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "say so with --axis engine_arg.max_num_seqs." in said.err
    assert compare(old, other, "--axis", "engine_arg.max_num_seqs").code == 0


def test_one_place_or_none_is_not_enough(compare: Compare, old: Path) -> None:
    assert compare(old).code == 2
    assert compare().code == 2


def test_a_damaged_result_leaves_with_3(compare: Compare, old: Path, tmp_path: Path) -> None:
    cut = save(tmp_path / "cut", 9)
    (cut / "result.json").write_text("{")
    said = compare(old, cut)
    assert (said.code, said.out, said.err.count("\n")) == (3, "", 1)
    assert "is not valid JSON" in said.err


def test_nothing_is_written_over(compare: Compare, old: Path, slow: Path) -> None:
    said = compare(old, slow, "--output-dir", old)
    assert said.code == 2
    assert "is not empty" in said.err


def test_samples_that_are_cut_off_or_missing_are_a_damaged_file(compare: Compare, old: Path, slow: Path) -> None:
    path = slow / "run-10" / "samples.parquet"
    path.write_bytes(path.read_bytes()[:200])
    said = compare(old, slow)
    assert (said.code, said.err.count("\n")) == (3, 1)
    assert f"cannot read {path} as parquet" in said.err
    path.unlink()
    assert compare(old, slow).code == 3


def test_every_sample_a_failure_says_nothing_and_does_not_crash(compare: Compare, old: Path, tmp_path: Path) -> None:
    """Samples that all lack a time: the repeats alone decide."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    empty = save_release(tmp_path / "empty", [5, 6])
    for folder in empty.iterdir():
        table = pq.read_table(folder / "samples.parquet")
        place = table.column_names.index("latency_s")
        nothing = pa.array([None] * table.num_rows, pa.float64())
        pq.write_table(table.set_column(place, "latency_s", nothing), folder / "samples.parquet")
    assert compare(old, empty).code == 0
