"""Texts from a table of tokens are the tokenizer's own, id by id, also where ids make no sense."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.dataset import Tokenizer
from harness.demo import MODEL
from harness.page import pieces
from harness.page.pieces import decoder
from tests.llama_tokenizer import write_tokenizer


def spoken(folder: Path, answers: Sequence[list[int]]) -> list[str]:
    return [text.strip() for text in Tokenizer(folder).decode(answers)]


def random_answers(size: int, count: int = 3000) -> list[list[int]]:
    r = random.Random(4)
    return [[r.randrange(size) for _ in range(r.randrange(12))] for _ in range(count)]


def llama(folder: Path, how: Any) -> Path:
    """The tests' Llama-like tokenizer with a decoder."""
    path = write_tokenizer(folder) / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder": how}))
    return folder


def test_byte_level_tokens_in_any_order_are_read_as_the_tokenizer_does() -> None:
    answers = random_answers(Tokenizer(MODEL).size)
    assert decoder(MODEL)(answers) == spoken(MODEL, answers)


def test_every_byte_has_the_letter_that_byte_level_tokenizers_give_it() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = pieces.byte_letters()
    assert sorted(letters) == sorted(ByteLevel.alphabet())
    assert sorted(letters.values()) == list(range(256))


def test_llamas_tokens_and_bytes_in_any_order_are_read_as_the_tokenizer_does(tmp_path: Path) -> None:
    folder = llama(tmp_path / "llama", {"type": "Sequence", "decoders": pieces._LLAMA})
    known = [*range(400), 518, 25580, 3532, 14816, 6778, 350, 29871, 29961, 29962]
    r = random.Random(5)
    answers = [[r.choice(known) for _ in range(r.randrange(12))] for _ in range(3000)]
    answers += [[0xE2 + 3, 0x82 + 3, 0xAC + 3], [0xE2 + 3, 0x82 + 3, 518], [29871, 518], []]
    assert decoder(folder)(answers) == spoken(folder, answers)


@pytest.mark.parametrize(
    "how", [None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}]
)
def test_any_other_decoder_is_the_tokenizers_own(tmp_path: Path, how: Any) -> None:
    folder = llama(tmp_path / "other", how)
    answers = random_answers(400, 300)
    assert decoder(folder)(answers) == spoken(folder, answers)
