"""What was asked and answered, as text, where it can be had: the answers' ids are in LoadGen's accuracy log, prompts
and references in the dataset, and the model's folder has the tokenizer.

Texts are ten times as big as everything else in a report: they are compressed in chunks, on all cores, and the page
unpacks a chunk when a row of it is looked at.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import cache
from multiprocessing import get_context
from os import sched_getaffinity
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from harness import benchmarks
from harness.accuracy import read_log, refuse_foreign
from harness.dataset import Samples, Tokenizer, load
from harness.page.pieces import Decode, decoder
from harness.results import ACCURACY, RunResult
from harness.tables import is_hub_id
from sut.errors import ConfigError, SetupError
from sut.query import TOKEN_DTYPE

ROWS = 512
"""Samples in a chunk."""

_LEVEL = 1
"""Of gzip: 6 takes more than twice as long for 8 % less."""

_SAMPLES_PER_WORKER, _MOST_WORKERS = 4000, 8


class Texts(NamedTuple):
    """`indices` are the samples in order, ROWS of which are a chunk: gzip of a JSON list of [prompt, answer, reference]
    each, in base64."""

    indices: list[int]
    chunks: list[str]


class Part(NamedTuple):
    """A chunk's token ids as bytes, so that they are cheap to hand to another process, and its references."""

    prompts: list[bytes]
    answers: list[bytes]
    references: list[str]


def find_texts(result: RunResult, model: str | None = None, dataset: str | None = None) -> Texts:
    """The texts of an accuracy run; `model` and `dataset` are where they lie now, if not where they lay then. Nothing
    is fetched. Raises SetupError, with the reason, where they cannot be had."""
    config = result.content.get("config", {})
    folder = find_tokenizer(str(model or config.get("model")))
    tokenizer = Tokenizer(folder)
    with ExitStack() as stack:
        pool = open_pool(stack, int(result["queries"]))
        samples = find_samples(result, tokenizer, dataset)
        log = read_log(result.folder / ACCURACY, "auto", tokenizer.size, strict=False)
        refuse_foreign(log, samples, tokenizer)
        order = sorted(log.answers)
        parts = [
            Part(
                [samples.prompt(index).tobytes() for index in order[start : start + ROWS]],
                [log.answers[index].tobytes() for index in order[start : start + ROWS]],
                [samples.references[index] for index in order[start : start + ROWS]],
            )
            for start in range(0, len(order), ROWS)
        ]
        try:
            chunks = list((pool.map if pool else map)(pack, [str(folder)] * len(parts), parts))
        except BrokenProcessPool as error:
            raise SetupError("a process that unpacks answers was killed, maybe for want of memory.") from error
    return Texts(order, chunks)


def open_pool(stack: ExitStack, samples: int) -> ProcessPoolExecutor | None:
    """Processes for many samples, which start while the files are read; spawned, since this one has threads."""
    workers = min(len(sched_getaffinity(0)), _MOST_WORKERS, samples // _SAMPLES_PER_WORKER)
    if workers < 2:
        return None
    pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn")))
    for _ in range(workers):
        pool.submit(warm)
    return pool


def warm() -> None:
    """What makes a process start."""


def find_tokenizer(model: str) -> Path:
    """The model's folder: a path, or what the hub's cache on this machine has. Raises SetupError."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True, allow_patterns=["*.json", "tokenizer*"]))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError) as error:
        raise SetupError(f"the model {model} is not on this machine: name its folder with --model.") from error


def find_samples(result: RunResult, tokenizer: Tokenizer, dataset: str | None) -> Samples:
    """The samples that were asked. Raises SetupError."""
    config, environment = result.content.get("config", {}), result.content.get("environment", {})
    try:
        row = benchmarks.find(str(result["benchmark"]))
    except ConfigError as error:
        raise SetupError(str(error)) from error
    source = dataset or str(config.get("dataset") or row.dataset)
    if is_hub_id(source) or not Path(source).is_file():
        raise SetupError(f"the dataset {source} is not on this machine: name its file with --dataset.")
    samples = load(source, tokenizer, limit=config.get("samples"), suffix=row.prompt_suffix)
    known = environment.get("dataset_sha256")
    if dataset is None and known not in (None, samples.sha256):
        raise SetupError(f"the dataset {source} has changed since the run: name the right file with --dataset.")
    return samples


def pack(folder: str, part: Part) -> str:
    """A chunk."""
    decode = decoder_of(folder)
    prompts, answers = (decode([*ids_of(data)]) for data in (part.prompts, part.answers))
    return packed(list(zip(prompts, answers, part.references, strict=True)), _LEVEL)


@cache
def decoder_of(folder: str) -> Decode:
    return decoder(Path(folder))


def ids_of(data: Sequence[bytes]) -> Iterator[list[int]]:
    return (np.frombuffer(ids, TOKEN_DTYPE).tolist() for ids in data)


def packed(content: Any, level: int = 6) -> str:
    """JSON, compressed, in base64: nothing that it holds can end the element of a page that holds it."""
    return base64.b64encode(gzip.compress(encoded(content), level, mtime=0)).decode("ascii")


def encoded(content: Any) -> bytes:
    """JSON as UTF-8; half a surrogate pair, which UTF-8 cannot hold, becomes a question mark."""
    try:
        return msgspec.json.encode(content)
    except UnicodeEncodeError:
        import json

        return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
