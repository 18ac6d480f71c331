"""Samples: every bad input is one sentence before anything starts; prompts are token ids, begun by BOS once."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import dataset, tables
from harness.dataset import Tokenizer, chat_prompt, load
from harness.demo import MODEL, QUESTIONS
from sut.errors import SetupError

TOKENIZER = Tokenizer(MODEL)

Write = Callable[..., Path]


def row(number: int = 0, **changes: Any) -> str:
    plain = {"id": f"q{number}", "system_prompt": "", "question": f"What is {number}?", "response": f"It is {number}."}
    return json.dumps(plain | changes)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_rows(*lines: str) -> Path:
        path = tmp_path / "questions.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write_rows


# -- good rows -------------------------------------------------------------------------------------------------


def test_prompts_lie_end_to_end_in_one_int32_array(write: Write) -> None:
    samples = load(str(write(row(0), row(1, system_prompt="Be brief."), "", row(2))), TOKENIZER)
    assert len(samples) == 3
    assert samples.ids == ["q0", "q1", "q2"]
    assert samples.references == ["It is 0.", "It is 1.", "It is 2."]
    assert samples.tokens.dtype == np.int32
    assert samples.lengths.tolist() == [len(samples.prompt(index)) for index in range(3)]
    assert samples.tokens.tolist() == [token for index in range(3) for token in samples.prompt(index).tolist()]
    assert samples.prompt(1).base is not None  # a view, no copy


def test_a_prompt_is_the_chat_template_begun_by_bos_once(write: Write) -> None:
    samples = load(str(write(row(0), row(1, system_prompt="Be brief."))), TOKENIZER)
    for index, system in enumerate(("", "Be brief.")):
        ids = samples.prompt(index).tolist()
        assert ids[0] == TOKENIZER.bos
        assert ids.count(ids[0]) == 1
        assert TOKENIZER.decode([ids]) == [chat_prompt(system, f"What is {index}?")]


@pytest.mark.parametrize(
    ("system", "text"),
    [("", "[INST] Why? [/INST]"), ("Be brief.", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhy? [/INST]")],
)
def test_chat_template(system: str, text: str) -> None:
    assert chat_prompt(system, "Why?") == text


def test_a_suffix_ends_every_prompt(write: Write) -> None:
    path = str(write(row(0), row(1)))
    plain, ended = load(path, TOKENIZER), load(path, TOKENIZER, suffix=(7, 8))
    for index in range(2):
        assert ended.prompt(index).tolist() == [*plain.prompt(index).tolist(), 7, 8]


def test_a_limit_takes_the_first_rows_and_reads_no_further(write: Write) -> None:
    path = write(row(0), row(1), row(2), "broken")
    assert load(str(path), TOKENIZER, limit=2).ids == ["q0", "q1"]
    assert load(str(path), TOKENIZER, limit=2).sha256 == sha256(path.read_bytes()).hexdigest()  # of the whole file


def test_a_line_separator_inside_a_string_ends_no_row(write: Write) -> None:
    question = "one\u2028two\u2029three\x85four"
    path = write(json.dumps(json.loads(row(0, question=question)), ensure_ascii=False), row(1))
    samples = load(str(path), TOKENIZER)
    prompts = TOKENIZER.decode([samples.prompt(index).tolist() for index in range(len(samples))])
    assert [prompt.removeprefix("[INST] ").removesuffix(" [/INST]") for prompt in prompts] == [question, "What is 1?"]


def test_windows_line_ends_are_read() -> None:
    assert tables.parse_row(row(0) + "\r", "here")["id"] == "q0"


def test_the_demos_own_questions_load_and_fit_its_context() -> None:
    context = json.loads((MODEL / "config.json").read_text())["max_position_embeddings"]
    samples = load(str(QUESTIONS), TOKENIZER, longest=context - 160)
    assert len(samples) == len(set(samples.ids)) == 1024
    assert samples.tokens.max() < TOKENIZER.size


# -- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], "the dataset {path} is empty."),
        (["", "  "], "the dataset {path} is empty."),
        (
            [row(0), row(1)[:-9]],
            "{path}, line 2: not a JSON object (Unterminated string starting at, column 73); is the file cut off?",
        ),
        (["[1, 2]"], "{path}, line 1: not a JSON object but list."),
        (
            ['{"id": "a", "question": "Why?", "response": "So."}'],
            "{path}, line 1: no text in column 'system_prompt'; raw rows have the columns id, system_prompt, question, "
            "response.",
        ),
        (
            [row(0), "", row(1, response=7)],
            "{path}, line 3: no text in column 'response'; raw rows have the columns id, system_prompt, question, "
            "response.",
        ),
        (
            [row(0, id=None)],
            "{path}, line 1: no text in column 'id'; raw rows have the columns id, system_prompt, question, response.",
        ),
        ([row(4), row(5), row(4)], "{path}, line 3: the id 'q4' stands already in line 1."),
        ([row(0, question=" \n")], "{path}, line 1: the question is empty."),
    ],
)
def test_a_bad_row_is_one_sentence_that_names_file_and_line(write: Write, lines: list[str], sentence: str) -> None:
    path = write(*lines)
    with pytest.raises(SetupError) as refused:
        load(str(path), TOKENIZER)
    assert str(refused.value) == sentence.format(path=path)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    missing, latin = tmp_path / "missing.jsonl", tmp_path / "latin.jsonl"
    latin.write_bytes(row(0).encode() + b"\n\xe9\n")
    remedy = "name a JSONL file with --dataset."
    for path, sentence in (
        (missing, f"cannot read the dataset {missing}: No such file or directory; {remedy}"),
        (tmp_path, f"cannot read the dataset {tmp_path}: Is a directory; {remedy}"),
        (latin, f"the dataset {latin} is not UTF-8 text (byte {len(row(0)) + 1}): save it as UTF-8 JSONL."),
    ):
        with pytest.raises(SetupError) as refused:
            load(str(path), TOKENIZER)
        assert str(refused.value) == sentence


def test_a_prompt_that_does_not_fit_is_refused_with_its_id_and_length(write: Write) -> None:
    path = write(row(0), row(1, question="word " * 99), row(2, question="word " * 50))
    lengths = load(str(path), TOKENIZER).lengths
    assert load(str(path), TOKENIZER, longest=int(lengths.max())).ids == ["q0", "q1", "q2"]
    with pytest.raises(SetupError) as refused:
        load(str(path), TOKENIZER, longest=40)
    assert str(refused.value) == (
        f"2 prompts of {path} do not fit the model beside their answer (the first, 'q1', has {lengths[1]} tokens and "
        "there is room for 40): leave them out, or take a model with a longer context."
    )


def test_half_a_surrogate_pair_is_refused(write: Write) -> None:
    with pytest.raises(SetupError):
        load(str(write(row(0, question="half \ud800 a pair"))), TOKENIZER)


# -- the tokenizer ---------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back_from_its_token_ids(text: str) -> None:
    special = ("<unk>", "<s>", "</s>")
    if not any(name in text for name in special):
        assert TOKENIZER.decode(TOKENIZER.encode([text])) == [text]


@pytest.mark.parametrize(
    "text",
    ["", " ", "  two  spaces  ", "tab\tand\nnewline\r\n", "🙂👩‍👩‍👧", "e\u0301 ≠ é", "\u0000\u2028\ufeff", "𝔘𝔫𝔦", "ﬁ"],
)
def test_odd_text_comes_back_from_its_token_ids(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode([text])) == [text]


def test_special_tokens_are_no_text() -> None:
    assert TOKENIZER.decode([[1, 2], []]) == ["", ""]


def test_ordinary_tokens_are_those_that_were_not_added_to_the_vocabulary() -> None:
    assert TOKENIZER.plain == list(range(3, TOKENIZER.size)), "unk, bos and eos are 0, 1 and 2"


def test_a_tokenizer_that_is_not_there_or_broken_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as refused:
        Tokenizer(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path} has no tokenizer.json: name a model folder that has one with --model."
    )  # fmt: skip
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(SetupError, match=rf"^cannot read the tokenizer {tmp_path}/tokenizer.json: .*\.$"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("bos", "expected"), [("<s>", 1), ({"content": "<s>", "lstrip": False}, 1), (None, None), ("<nope>", None)]
)
def test_bos_is_what_the_tokenizers_settings_say(tmp_path: Path, bos: Any, expected: int | None) -> None:
    (tmp_path / "tokenizer.json").write_text((MODEL / "tokenizer.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos}))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.bos == expected
    assert tokenizer.encode(["a"])[0][:1] == ([expected] if expected is not None else tokenizer.encode(["a"])[0][:1])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot read {path}: No such file or directory."),
        ("{", "{path} is not valid JSON: "),
        ("[]", "{path} does not hold a JSON object."),
        (b"\xff", "{path} is not valid JSON: "),
    ],
)
def test_read_json(tmp_path: Path, text: str | bytes | None, sentence: str) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SetupError) as refused:
        dataset.read_json(path)
    assert str(refused.value).startswith(sentence.format(path=path))
