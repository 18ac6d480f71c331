"""What `dataset show` says of a dataset."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from harness import profile as profiles
from harness.dataset import Tokenizer, load
from harness.demo import MODEL, QUESTIONS
from harness.profile import as_json, as_svg, as_text, profile, refuse_picture
from sut.errors import ConfigError, SetupError

RAW = [
    {"id": "flan.1", "system_prompt": "", "question": "Why?", "response": "So."},
    {"id": "cot.2", "system_prompt": "Be kind.", "question": "How long is this one?", "response": "Not very long."},
]
PROCESSED = [
    {"id": "cot.7", "tok_input": [1, 1, 300], "output": "Ten chars."},
    {"id": "cot.8", "tok_input": [1, 900], "output": "Two"},
]


def silent(text: str) -> None: ...


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    """As JSONL, or as a list where the name ends in .json; returns the path as text."""
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    return str(path)


def test_a_tokenizer_counts_as_a_run_does(tmp_path: Path) -> None:
    tokenizer = Tokenizer(MODEL)
    samples = load(str(QUESTIONS), tokenizer)
    found = profile(str(QUESTIONS), tokenizer, silent)
    assert found.prompts.tolist() == samples.lengths.tolist()
    assert (found.kind, found.prompt_unit, found.answer_unit) == ("raw", "tokens", "tokens")
    assert found.sha256 == samples.sha256 and found.ids == samples.ids
    alone = tokenizer.encode([samples.references[5]])[0][1:]  # without the beginning-of-sequence id
    assert found.answers[5] == len(alone)
    assert found.as_many_as == ["demo"]
    assert found.origins == {"cot": 256, "flan": 256, "niv": 256, "t0": 256}


def test_without_a_tokenizer_texts_count_characters(tmp_path: Path) -> None:
    found = profile(written(tmp_path / "raw.jsonl", RAW), None, silent)
    assert (found.prompt_unit, found.answer_unit) == ("characters", "characters")
    assert found.prompts.tolist() == [
        len("[INST] Why? [/INST]"),
        len("[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHow long is this one? [/INST]"),
    ]
    assert found.answers.tolist() == [3, 14]
    assert found.origins == {"cot": 1, "flan": 1} and found.as_many_as == []


def test_processed_prompts_count_their_ids(tmp_path: Path) -> None:
    found = profile(written(tmp_path / "p.json", PROCESSED), None, silent)
    assert (found.kind, found.prompt_unit, found.answer_unit) == ("processed", "tokens", "characters")
    assert (found.prompts.tolist(), found.answers.tolist()) == ([3, 2], [10, 3])


def test_cnn_eval_json_has_no_ids_and_no_origins(tmp_path: Path) -> None:
    rows = [{"instruction": "Sum up.", "input": "News.", "tok_input": [5] * n, "output": "x"} for n in (3, 9, 4)]
    found = profile(written(tmp_path / "cnn_eval.json", rows), None, silent)
    assert found.longest == [("1", 9), ("2", 4), ("0", 3)]
    assert found.origins == {}


@pytest.mark.parametrize(("known", "kind"), [(True, "processed"), (False, "raw")])
def test_a_hub_dataset_has_the_checksum_that_a_run_records(
    monkeypatch: pytest.MonkeyPatch, known: bool, kind: str
) -> None:
    from datasets import Dataset

    table = pa.Table.from_pylist(PROCESSED if known else RAW)
    monkeypatch.setattr("datasets.load_dataset", lambda name, split: Dataset(table))
    found = profile("owner/name", None, silent)
    assert found.kind == kind
    assert found.sha256 == (load("owner/name", Tokenizer(MODEL)).sha256 if known else None)
    assert ("not known without --model" in as_text(found, 80)) != known


def test_the_text_and_the_json_say_the_same(tmp_path: Path) -> None:
    source = written(tmp_path / "p.jsonl", PROCESSED)
    found = profile(source, None, silent)
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    assert as_text(found, 60).splitlines()[:6] == [
        source,
        "2 processed rows",
        f"sha256 {digest}",
        "origins: 2 cot",
        "",
        "Prompts, tokens: min 2 · mean 2.5 · p50 2 · p90 3 · p99 3 · max 3",
    ]
    assert as_text(found, 60).splitlines()[-1] == "longest prompts: cot.7 (3), cot.8 (2)"
    content = as_json(found)
    assert json.loads(json.dumps(content)) == content
    assert (content["rows"], content["sha256"], content["origins"]) == (2, digest, {"cot": 2})
    assert content["answers"]["unit"] == "characters" and content["answers"]["max"] == 10
    assert content["prompts"]["histogram"] == {"edges": [2, 3, 4], "counts": [1, 1], "open": False}
    assert content["longest_prompts"][0] == {"id": "cot.7", "length": 3}
    assert f"sha256 {digest[:16]}…" in as_svg(found) and ">p.jsonl<" in as_svg(found)


def test_long_reading_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "SAID_EVERY", 256)
    rows = [PROCESSED[0] | {"id": f"cot.{number}"} for number in range(700)]
    said: list[str] = []
    profile(written(tmp_path / "p.jsonl", rows), None, said.append)
    assert said[1:] == ["read 256 rows", "read 512 rows"]


def test_a_dataset_that_a_run_refuses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"line 2: the id 'flan.1' stands already in line 1\.$"):
        profile(written(tmp_path / "raw.jsonl", [RAW[0], RAW[0]]), None, silent)
    for source, what in ((tmp_path / "none", "is no file here"), (tmp_path, "is a folder")):
        with pytest.raises(SetupError, match=f"{what}: name a dataset's file, or a hub id"):
            profile(str(source), None, silent)


def test_a_picture_that_could_not_be_written_is_refused_before(tmp_path: Path) -> None:
    (tmp_path / "there.svg").touch()
    for name, what in (
        ("a.png", "a picture is written as SVG; end its name in .svg."),
        ("there.svg", "is there already, and nothing is overwritten: name a new file."),
        ("none/a.svg", f"there is no folder {tmp_path / 'none'}."),
    ):
        with pytest.raises(ConfigError) as refused:
            refuse_picture(tmp_path / name)
        assert str(refused.value).endswith(what)
    refuse_picture(tmp_path / "new.svg")
    refuse_picture(None)
