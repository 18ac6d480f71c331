"""The recipe row by row: expected values are by hand from processorca.py of mlcommons/inference, ids as in its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.openorca import (
    BAD_PROMPTS,
    FILTERS,
    KEPT,
    OUTCOME,
    Judged,
    choose,
    draw,
    fate_of,
    finish,
    is_ascii,
    judge,
    origin_of,
    prompt_text,
    reference_tokenizer,
)
from sut.errors import SetupError
from tests.llama_tokenizer import write_tokenizer

ASCII, LENGTHS, SHORT, BAD = range(4)

FOR_SEARCH = (
    "You are an AI assistant. Provide a detailed answer so user don’t need to search outside to understand the answer."
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tokenizer(tmp_path_factory.mktemp("model") / "llama"))


# -- texts -------------------------------------------------------------------------------------------------------------


def test_the_template_has_the_system_block_only_with_a_system_prompt() -> None:
    assert prompt_text("Be kind.", "Why?") == "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nWhy? [/INST]"
    assert prompt_text("", "Why?") == prompt_text(None, "Why?") == "<s>[INST] Why? [/INST]"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("plain ASCII\n\t\x7f\x00", True),
        ("’ – “ ” —", True),  # the five
        ("‘", False),  # the left single quote is not one of them
        ("…", False),
        ("café", False),
        ("\u00a0", False),  # a space, but not ASCII's
        ("", True),
    ],
)
def test_ascii_and_five_typographic_characters(text: str, kept: bool) -> None:
    assert is_ascii(text) == kept


@pytest.mark.parametrize(("name", "origin"), [("flan.1234", "flan"), ("t0.1.2", "t0"), ("cot", "cot"), (".5", "")])
def test_the_origin_is_what_stands_before_the_first_dot(name: str, origin: str) -> None:
    assert origin_of(name) == origin


# -- filters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "system_prompt", "prompt_tokens", "answer_tokens", "fate"),
    [
        ("cot", "Be kind.", 1023, 1023, KEPT),
        ("cot", "Be kind.", 1024, 5, LENGTHS),
        ("cot", "Be kind.", 5, 1024, LENGTHS),
        ("cot", "Be kind.", 5, 3, KEPT),
        ("cot", "Be kind.", 5, 2, SHORT),
        ("niv", "", 5, 2, SHORT),  # before its system prompt is looked at
        ("niv", "", 1024, 2, LENGTHS),  # before its answer is
        ("niv", "", 5, 5, BAD),
        ("t0", FOR_SEARCH, 5, 5, BAD),
        ("t0", FOR_SEARCH.replace("’", "'"), 5, 5, BAD),
        ("t0", FOR_SEARCH + " ", 5, 5, KEPT),  # the very prompt and no other
        ("flan", "", 5, 5, KEPT),  # only niv and t0
        ("cot", FOR_SEARCH, 5, 5, KEPT),
        ("niv", None, 5, 5, KEPT),  # pandas: None == "" is false
    ],
)
def test_the_first_filter_that_drops_a_row(
    origin: str, system_prompt: str | None, prompt_tokens: int, answer_tokens: int, fate: int
) -> None:
    assert fate_of(origin, system_prompt, prompt_tokens, answer_tokens) == fate


def test_the_bad_system_prompts_are_six() -> None:
    assert len(BAD_PROMPTS) == 6 and {"", FOR_SEARCH} < BAD_PROMPTS


# -- ids ---------------------------------------------------------------------------------------------------------------


def test_a_prompt_begins_twice_and_ends_in_the_first_token_of_an_answer(tokenizer: str) -> None:
    """The tokenizer puts <s> before a text that has one; MLCommons' own file begins 1, 1, 518, 25580, 29962 too."""
    batch = {"id": ["cot.7"], "system_prompt": ["A"], "question": ["B"], "response": ["a b"]}
    row = {name: cells[0] for name, cells in finish(batch, tokenizer, (29_871,)).items()}
    template = [518, 25580, 29962, 3532, 14816, 29903, 6778, 13]
    assert row["tok_input"][:10] == [1, 1, *template]
    assert row["tok_input"][-4:] == [29914, 25580, 29962, 29871]
    assert row["tok_output"][:2] == [1, 29871] and len(row["tok_output"]) == 5
    assert (row["tok_input_length"], row["tok_output_length"]) == (len(row["tok_input"]), 5)
    assert tuple(row) == OUTCOME
    assert (row["id"], row["origin"], row["output"]) == ("cot.7", "cot", "a b")
    assert row["input"] == "<s>[INST] <<SYS>>\nA\n<</SYS>>\n\nB [/INST]"


@pytest.mark.parametrize(
    ("settings", "around"),
    [
        ({}, [1, "…"]),  # LlamaTokenizerFast's defaults
        ({"add_bos_token": False}, ["…"]),
        ({"add_eos_token": True}, [1, "…", 2]),
        ({"bos_token": {"content": "<s>", "lstrip": False}}, [1, "…"]),
    ],
)
def test_special_tokens_around_a_text(tmp_path: Path, settings: dict[str, object], around: list[object]) -> None:
    folder = write_tokenizer(tmp_path / "llama", **settings)
    ids = reference_tokenizer(str(folder)).encode("B").ids
    assert ids == [token for place in around for token in ([350] if place == "…" else [place])]


def test_a_tokenizer_without_a_beginning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"has no beginning-of-sequence token, with which prompts begin\.$"):
        reference_tokenizer(str(write_tokenizer(tmp_path / "llama", bos_token=None)))


def test_rows_are_judged_by_their_tokens(tokenizer: str) -> None:
    """Without a system prompt, k letters make 10 + k tokens and the appended one; an answer of n letters 2 + n."""
    cases = [
        ("cot", "a" * 1012, "yes", KEPT),
        ("cot", "a" * 1013, "yes", LENGTHS),
        ("cot", "a", "a" * 1021, KEPT),
        ("cot", "a", "a" * 1022, LENGTHS),
        ("cot", "a", "a", KEPT),
        ("cot", "a", "B", SHORT),  # <s> and one token
        ("cot", "a", "", SHORT),
        ("cot", "é" + "a" * 1013, "yes", ASCII),
        ("cot", "a", "é", ASCII),
        ("niv", "a", "yes", BAD),
    ]
    origins, questions, answers, fates = zip(*cases, strict=True)
    batch = {
        "id": [f"{name}.1" for name in origins],
        "system_prompt": [""] * len(cases),
        "question": questions,
        "response": answers,
    }
    assert judge(batch, tokenizer, (29_871,)) == {"fate": list(fates), "origin": list(origins)}


# -- the draw ----------------------------------------------------------------------------------------------------------


def test_rows_are_drawn_as_pandas_draws_them() -> None:
    """As `DataFrame.sample(n=5, random_state=1337)` draws of 20 rows, by numpy's legacy generator, which is frozen."""
    drawn = draw(np.arange(100, 120), 5, 1337)
    assert drawn.tolist() == (100 + np.random.RandomState(1337).permutation(20)[:5]).tolist()


def test_each_origin_is_drawn_from_what_the_filters_leave_of_it() -> None:
    judged = Judged(np.array([KEPT, BAD] * 40, np.uint8), np.array([0, 0, 1, 1, 2, 2, 3, 3] * 10, np.uint8))
    assert judged.left["flan"].tolist() == list(range(2, 80, 8))
    chosen = choose(judged.left, 4)
    assert [number % 8 for number in chosen] == [0] * 4 + [2] * 4 + [4] * 4 + [6] * 4
    assert (chosen[:4] // 8).tolist() == np.random.RandomState(1337).permutation(10)[:4].tolist()
    with pytest.raises(SetupError, match=r"^too few rows remain after the filters: 10 of cot, 10 of flan, 10 of niv, "):
        choose(judged.left, 11)


def test_counts_are_what_each_filter_leaves() -> None:
    fates = np.array([ASCII, LENGTHS, LENGTHS, SHORT, BAD, KEPT, KEPT], np.uint8)
    origins = np.array([0, 0, 0, 0, 3, 0, 3], np.uint8)
    left = {"cot": 1, "flan": 0, "niv": 0, "t0": 1}
    after = dict(zip((f"after_{name}" for name in FILTERS), (6, 4, 3, 2), strict=True))
    assert Judged(fates, origins).counts == {"read": 7, **after, "by_origin": left}
