"""Prompts, answers and references as text: there where they can be had, and else the reason."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from harness.page import texts as texts_module
from harness.page.source import load
from harness.page.texts import find_texts, packed
from sut.errors import SetupError
from tests.harness.page.made_results import HOSTILE, make_accuracy_run


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def test_texts_are_in_the_order_of_the_samples(tmp_path: Path) -> None:
    folder = make_accuracy_run(tmp_path / "one", ["yes it is", "no it is not"])
    found = find_texts(load(folder))
    assert found.indices == [0, 1]
    ((first, second),) = map(unpacked, found.chunks)
    assert first == ["[INST] What is 0? [/INST]", "yes it is", "reference 0"]
    assert second[1] == "no it is not"


def test_many_texts_are_packed_in_processes_into_chunks_of_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts_module, "ROWS", 4)
    monkeypatch.setattr(texts_module, "_SAMPLES_PER_WORKER", 5)
    monkeypatch.setattr(texts_module, "sched_getaffinity", lambda _: {0, 1})
    folder = make_accuracy_run(tmp_path / "one", [f"answer {number}" for number in range(10)])
    chunks = [unpacked(chunk) for chunk in find_texts(load(folder)).chunks]
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    assert [row[1] for chunk in chunks for row in chunk] == [f"answer {number}" for number in range(10)]


def changed(folder: Path) -> None:
    dataset = folder.parent / "questions.jsonl"
    dataset.write_text(dataset.read_text().replace("What", "Who"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (changed, "has changed since the run"),
        (lambda folder: (folder.parent / "questions.jsonl").unlink(), "name its file with --dataset"),
        (lambda folder: (folder / "mlperf_log_accuracy.json").write_text("[{"), "cut off"),
        (lambda folder: (folder / "mlperf_log_accuracy.json").unlink(), "cannot read"),
    ],
    ids=["another dataset", "no dataset", "a log cut off", "no log"],
)
def test_what_is_not_here_is_said(tmp_path: Path, spoil: Any, said: str) -> None:
    folder = make_accuracy_run(tmp_path / "one", ["yes", "no"])
    spoil(folder)
    with pytest.raises(SetupError, match=said):
        find_texts(load(folder))


def test_a_model_that_is_not_here_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    folder = make_accuracy_run(tmp_path / "one", ["yes"])
    for name in ("somebody/no-such-model", "/no/such/folder", "../" + HOSTILE[:40]):
        with pytest.raises(SetupError, match="is not on this machine: name its folder with --model"):
            find_texts(load(folder), model=name)


def test_half_a_surrogate_pair_does_not_cost_the_report() -> None:
    assert unpacked(packed({"text": "half \ud800 a pair"})) == {"text": "half ? a pair"}


def test_what_is_packed_can_end_no_element() -> None:
    assert not set("<>&\"'") & set(packed([HOSTILE]))
