"""A small tokenizer built as Llama 2's is, with its ids where the prompts of MLCommons' dataset show them.

BPE over the whole text, a space as "▁", one more before a text, bytes for what is not known. Every printable ASCII
character is a token; merges make the few tokens that the template needs, and "▁B".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

KNOWN = {"▁[": 518, "INST": 25580, "▁<<": 3532, "SY": 14816, ">>": 6778, "▁B": 350} | {
    "▁": 29871, "[": 29961, "]": 29962, "S": 29903, "I": 29902, "N": 29940, "T": 29911, "/": 29914, "B": 29933,
}  # fmt: skip

MERGES = ["▁ [", "I N", "S T", "IN ST", "▁ <", "▁< <", "S Y", "> >", "▁ B"]


def write_tokenizer(folder: Path, **settings: Any) -> Path:
    """tokenizer.json and tokenizer_config.json, the latter with `settings` too; returns the folder."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)} | KNOWN
    others = [token for token in [*map(chr, range(33, 127)), "IN", "ST", "▁<"] if token not in vocabulary]
    free = sorted(set(range(32_000)) - set(vocabulary.values()))
    others += [f"<none {number}>" for number in free[len(others) :]]
    vocabulary |= dict(zip(others, free, strict=True))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": name} | flags for number, name in enumerate(list(vocabulary)[:3])],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": MERGES,
        },
    }
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"} | settings))
    return folder
