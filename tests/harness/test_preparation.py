"""The whole preparation on rows made up here; what the recipe's own script makes of them is written down."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness import preparation
from harness.dataset import Tokenizer, load
from harness.demo import MODEL
from harness.openorca import OUTCOME
from harness.preparation import Preparation, find_source, prepare, refuse_used, summary
from sut.errors import ConfigError, SetupError
from tests.llama_tokenizer import write_tokenizer

SAMPLED = "cot.31 cot.23 cot.7 flan.25 flan.17 flan.9 niv.40 niv.20 niv.4 t0.46 t0.58 t0.22"
"""The ids that processorca.py gives of `rows()` with transformers 4.31 (3 of each origin, 12 to calibrate)."""

CALIBRATION = "niv.4 cot.31 flan.25 niv.20 t0.22 t0.58 niv.40 t0.46 flan.17 cot.23 flan.9 cot.7"


def rows() -> list[dict[str, Any]]:
    """15 of each origin, of which niv and t0 lose their third and every origin some to each other filter."""
    made = []
    for number in range(60):
        row = {
            "id": f"{('niv', 'flan', 't0', 'cot')[number % 4]}.{number}",
            "system_prompt": "" if number % 3 == 0 else f"Prompt {number}.",
            "question": f"Question {number}?",
            "response": f"Answer “{number}”.",
        }
        made.append(row)
    made[5]["question"] = "Où?"
    made[10]["response"] = "B"
    made[15]["response"] = "long " * 300
    made[19]["question"] = "long " * 300
    made[22]["system_prompt"] = None
    return made


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows()), path, row_group_size=13)
    return path


def silent(text: str) -> None: ...


def refusal(plan: Preparation) -> str:
    with pytest.raises(SetupError) as refused:
        prepare(plan, silent)
    assert "\n" not in str(refused.value)
    assert not plan.output.exists(), "nothing is left behind"
    return str(refused.value)


# -- good --------------------------------------------------------------------------------------------------------------


def test_the_outcome_is_that_of_the_reference(tmp_path: Path, source: Path, tokenizer: Path) -> None:
    plan = Preparation(str(source), tokenizer, tmp_path / "out", per_origin=3, pickle=True)
    manifest = prepare(plan, silent)
    names = ["trial.sampled_12.parquet", "trial.sampled_12.pkl"]
    names += ["trial.calibration_12.parquet", "trial.calibration_12.pkl"]
    assert sorted(path.name for path in plan.output.iterdir()) == sorted([*names, "trial.json"])
    for name, expected in zip(names, [SAMPLED, SAMPLED, CALIBRATION, CALIBRATION], strict=True):
        frame = (pd.read_pickle if name.endswith(".pkl") else pd.read_parquet)(plan.output / name)
        assert " ".join(frame.id) == expected
        assert tuple(frame.columns) == OUTCOME
        assert frame.index.tolist() == list(range(12))
        assert frame.tok_input_length.tolist() == [len(ids) for ids in frame.tok_input]
    assert json.loads((plan.output / "trial.json").read_text()) == manifest


def test_what_is_written_is_what_a_run_reads(tmp_path: Path, source: Path, tokenizer: Path) -> None:
    plan = Preparation(str(source), tokenizer, tmp_path / "out", per_origin=3, pickle=True)
    prepare(plan, silent)
    read = [load(str(plan.output / f"trial.sampled_12.{end}"), Tokenizer(tokenizer)) for end in ("parquet", "pkl")]
    assert read[0].tokens.tolist() == read[1].tokens.tolist()
    assert read[0].prompt(0)[:3].tolist() == [1, 1, 518] and read[0].prompt(0)[-1] == 29_871
    assert " ".join(read[1].ids) == SAMPLED and read[0].references == read[1].references


def test_the_manifest_says_what_was_made_of_what(tmp_path: Path, source: Path, tokenizer: Path) -> None:
    plan = Preparation(str(source), tokenizer, tmp_path / "out", per_origin=3)
    manifest = prepare(plan, silent)
    assert manifest["source"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert manifest["tokenizer"]["appended"] == [29_871] and manifest["tokenizer"]["vocabulary"] == 32_000
    assert manifest["rows"] == {
        "read": 60,
        "after_ascii": 59,
        "after_token_lengths": 57,
        "after_short_answers": 56,
        "after_bad_prompts": 46,
        "by_origin": {"cot": 13, "flan": 14, "niv": 10, "t0": 9},
    }
    for name, told in manifest["outputs"].items():
        assert told["sha256"] == hashlib.sha256((plan.output / name).read_bytes()).hexdigest()
    assert summary(manifest, Path("out")).splitlines() == [
        "         60 rows read",
        "         59 left by the filter of characters outside ASCII (-1)",
        "         57 left by the filter of token counts (-2)",
        "         56 left by the filter of short answers (-1)",
        "         46 left by the filter of bad system prompts (-10)",
        "            of them 13 cot, 14 flan, 10 niv, 9 t0",
        "         12 rows in out/trial.sampled_12.parquet",
        "         12 rows in out/trial.calibration_12.parquet",
        "A trial: not the benchmark's own, by its size or its tokenizer.",
    ]


def test_parts_and_workers_change_nothing(
    tmp_path: Path, source: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(Preparation(str(source), tokenizer, tmp_path / "whole", per_origin=3), silent)
    monkeypatch.setattr(preparation, "PART", 26)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    said: list[str] = []
    parts = prepare(Preparation(str(source), tokenizer, tmp_path / "parts", per_origin=3, workers=2), said.append)
    assert parts["rows"] == whole["rows"] and parts["outputs"] == whole["outputs"]
    assert [text.split(",")[0] for text in said if text.startswith("filtered")] == [
        "filtered 26 of 60 rows",
        "filtered 52 of 60 rows",
        "filtered 60 of 60 rows",
    ]


def test_only_the_full_count_and_llama_2_have_the_name_of_the_benchmark(tokenizer: Path, tmp_path: Path) -> None:
    def stem(**options: Any) -> str:
        return Preparation(**{"source": "s", "tokenizer": tokenizer, "output": tmp_path} | options).stem

    assert stem() == "open_orca_gpt4_tokenized_llama"
    assert stem(per_origin=6143) == stem(tokenizer=MODEL) == "trial"


def test_another_tokenizer_appends_nothing(tmp_path: Path, source: Path) -> None:
    """29871 is no token of the demo's, and some other word of most."""
    plan = Preparation(str(source), MODEL, tmp_path / "out", per_origin=2)
    assert prepare(plan, silent)["tokenizer"]["appended"] == []
    assert len(load(str(plan.output / "trial.sampled_8.parquet"), Tokenizer(MODEL))) == 8


# -- what cannot be done -----------------------------------------------------------------------------------------------


def test_too_few_rows_are_counted_by_origin(tmp_path: Path, source: Path, tokenizer: Path) -> None:
    assert refusal(Preparation(str(source), tokenizer, tmp_path / "out", per_origin=11)) == (
        "too few rows remain after the filters: 10 of niv, 9 of t0, and 11 of each origin are needed; take the whole "
        "source, or --per-origin for a trial."
    )


def changed(place: int, **cells: Any) -> pa.Table:
    made = rows()
    made[place] |= cells
    return pa.Table.from_pylist(made)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (changed(31, response=None), "row 31: no text in column 'response'; is it 1M-GPT4-Augmented.parquet?"),
        (changed(59, id="sql.59"), "row 59: the id 'sql.59' is of none of cot, flan, niv, t0."),
        (
            changed(0).drop_columns(["question"]),
            "has no column question but id, system_prompt, response: the recipe is for 1M-GPT4-Augmented.parquet, "
            "whose columns are id, system_prompt, question, response.",
        ),
        (
            changed(0).set_column(0, "id", pa.array(range(60))),
            "has no text in column id but int64: is it 1M-GPT4-Augmented.parquet?",
        ),
    ],
    ids=["a cell without text", "another origin", "a missing column", "numbers for ids"],
)
def test_rows_that_are_not_openorcas(tmp_path: Path, tokenizer: Path, table: pa.Table, sentence: str) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path)
    told = refusal(Preparation(str(path), tokenizer, tmp_path / "out", per_origin=3))
    assert told.startswith(str(path)) and told.endswith(sentence)


@pytest.mark.parametrize("damage", ["not parquet", "cut off", "a hole"])
def test_a_damaged_source_is_named(tmp_path: Path, source: Path, tokenizer: Path, damage: str) -> None:
    content = source.read_bytes()
    source.write_bytes(
        {
            "not parquet": b"id,system_prompt\n",
            "cut off": content[:3000],
            "a hole": content[:100] + b"\xff" * 300 + content[400:],  # in the first rows' texts
        }[damage]
    )
    told = refusal(Preparation(str(source), tokenizer, tmp_path / "out", per_origin=3))
    assert told.startswith(f"cannot read {source} as parquet (")
    assert told.endswith("): is it 1M-GPT4-Augmented.parquet, whole?")


def test_a_source_that_is_not_there(tmp_path: Path, tokenizer: Path) -> None:
    for name, what in ((tmp_path / "none.parquet", "is no file here"), (tmp_path, "is a folder")):
        assert refusal(Preparation(str(name), tokenizer, tmp_path / "out")) == (
            f"{name} {what}: name 1M-GPT4-Augmented.parquet, or the hub id Open-Orca/OpenOrca, with --source."
        )


def test_a_hub_id_means_its_gpt_4_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(*names: str, **options: str) -> str:
        asked.append((names, options))
        return "/cache/file.parquet"

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert find_source("Open-Orca/OpenOrca") == Path("/cache/file.parquet")
    assert asked == [(("Open-Orca/OpenOrca", "1M-GPT4-Augmented.parquet"), {"repo_type": "dataset"})]


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*names: str, **options: str) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(SetupError) as refused:
        find_source("Open-Orca/OpenOrca")
    assert str(refused.value) == (
        "1M-GPT4-Augmented.parquet of Open-Orca/OpenOrca is not to be had from the hub (ConnectionError): get it "
        "elsewhere and name the file with --source."
    )


def test_an_output_that_holds_something_is_left_alone(tmp_path: Path, source: Path, tokenizer: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    plan = Preparation(str(source), tokenizer, tmp_path / "out", per_origin=3)
    with pytest.raises(ConfigError) as refused:
        prepare(plan, silent)
    assert str(refused.value) == (
        f"{tmp_path / 'out'} already holds mine.txt, and nothing is overwritten: name a new folder with --output."
    )
    assert [path.name for path in plan.output.iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError, match="is a file: name a new folder with --output"):
        refuse_used(source)


@pytest.mark.parametrize("output", ["new", "empty"])
def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, source: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """The disk is full when the second file is written: the first, whole in scratch, goes with it."""
    from datasets import Dataset

    whole = Dataset.to_parquet

    def to_parquet(self: Dataset, path: str) -> int:
        if "calibration" in path:
            Path(path).write_bytes(b"PAR1 half")
            raise OSError(28, "No space left on device")
        return whole(self, path)

    monkeypatch.setattr(Dataset, "to_parquet", to_parquet)
    plan = Preparation(str(source), tokenizer, tmp_path / "out", per_origin=3)
    if output == "empty":
        plan.output.mkdir()
    with pytest.raises(SetupError, match=r"^cannot write below .*/out \(No space left on device\): make room, or "):
        prepare(plan, silent)
    assert plan.output.exists() == (output == "empty")
    assert not plan.output.exists() or not list(plan.output.iterdir())
