"""Token ids as text by a table of what each id stands for: five times as fast as the tokenizer, and the same texts.

Two decoders are exact as tables, and nearly all models have one of them: that of byte-level BPE (GPT-2, Llama 3, Qwen),
where each token is some bytes, and that of SentencePiece's BPE (Llama 2, Mistral), where each is some letters, but for
the tokens of single bytes: an answer with one of these goes to the tokenizer, and so do the answers of any other model.
Scores never come from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.dataset import Tokenizer, read_json

Decode = Callable[[Sequence[list[int]]], list[str]]

_LLAMA = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]


def decoder(folder: Path) -> Decode:
    """What decodes answers without special tokens and surrounding space, with the tokenizer in a folder. Raises
    SetupError as Tokenizer does."""
    tokenizer, content = Tokenizer(folder), read_json(folder / "tokenizer.json")
    how = content.get("decoder") or {}
    tokens, special = vocabulary(content)
    if how.get("type") == "ByteLevel":
        return by_bytes(tokens, special)
    if how.get("type") == "Sequence" and how.get("decoders") == _LLAMA:
        return by_letters(tokens, special, tokenizer)
    return lambda answers: [text.strip() for text in tokenizer.decode(answers)]


def vocabulary(content: dict[str, Any]) -> tuple[list[str], set[str]]:
    """The tokens by id, "" where there is none, and those that are special."""
    added = content.get("added_tokens") or []
    words = (content.get("model") or {}).get("vocab")
    known = {number: token for token, number in words.items()} if isinstance(words, dict) else {}
    known |= {token["id"]: token["content"] for token in added}
    return [known.get(number, "") for number in range(max(known, default=-1) + 1)], {
        token["content"] for token in added if token.get("special")
    }


def by_bytes(tokens: Sequence[str], special: set[str]) -> Decode:
    """A token of which not every letter stands for a byte is taken as it is."""
    letters = byte_letters()

    def bytes_of(token: str) -> bytes:
        try:
            return bytes(letters[letter] for letter in token)
        except KeyError:
            return token.encode()

    table = [b"" if token in special else bytes_of(token) for token in tokens]
    return lambda answers: [
        b"".join([table[number] for number in ids]).decode("utf-8", "replace").strip() for ids in answers
    ]


def byte_letters() -> dict[str, int]:
    """The letter that stands for each byte: itself where it can be seen, else one from 256 on, in order (GPT-2's
    bytes_to_unicode)."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(rest)}


def by_letters(tokens: Sequence[str], special: set[str], tokenizer: Tokenizer) -> Decode:
    """A single byte may be a part of a letter, or of none: what it is read as depends on its neighbours."""

    def letters_of(token: str) -> str | None:
        if token in special:
            return ""
        single = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        return None if single else token.replace("▁", " ")

    table: list[Any] = [letters_of(token) for token in tokens]

    def decode(answers: Sequence[list[int]]) -> list[str]:
        texts = []
        for ids in answers:
            try:
                text = "".join([table[number] for number in ids])
            except TypeError:  # None, in the place of a byte
                (text,) = tokenizer.decode([ids])
            texts.append(text.strip())
        return texts

    return decode
