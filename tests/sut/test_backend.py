"""drive(): what an async generator yields reaches the sink as one first token and one end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from sut.backend import drive
from sut.errors import BackendError, QueryFailed, ReplicaDied
from sut.query import NO_TOKENS, Outcome, Query, Tokens

Frame = tuple[Sequence[int], str | None]


class Notes:
    """A sink that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.outcomes: list[Outcome] = []

    def first(self, query: Query, ids: Tokens) -> None:
        assert ids.dtype == np.int32
        assert ids.shape == (1,)
        self.heard.append(f"first {ids[0]}")

    def progress(self, query: Query, tokens: int) -> None:
        self.heard.append(f"progress {tokens}")

    def done(self, query: Query, outcome: Outcome) -> None:
        self.heard.append("done")
        self.outcomes.append(outcome)


async def play(frames: list[Frame], error: BaseException | None = None) -> AsyncIterator[Frame]:
    for frame in frames:
        await asyncio.sleep(0)
        yield frame
    if error is not None:
        raise error


def hear(frames: list[Frame], error: BaseException | None = None, stream: bool = True) -> Notes:
    notes = Notes()
    asyncio.run(drive(play(frames, error), Query(1, 0, NO_TOKENS, stream, 8, 0.0), notes))
    return notes


@pytest.mark.parametrize(
    ("frames", "heard"),
    [
        # a frame per token
        ([([5], None), ([6], None), ([7], "stop")], ["first 5", "progress 1", "progress 2", "done"]),
        # a late reader finds two frames merged: the first token is still the first id alone
        ([([5, 6, 7], None), ([8], "stop")], ["first 5", "progress 3", "done"]),
        # everything in one frame
        ([([5, 6, 7, 8], "length")], ["first 5", "done"]),
        # empty frames before, between and after say nothing
        (
            [([], None), ([5], None), ([], None), ([6], None), ([], "stop")],
            ["first 5", *map("progress {}".format, (1, 2)), "done"],
        ),
        # an end without a token
        ([([], "stop")], ["done"]),
        # a generator that yields nothing at all
        ([], ["done"]),
    ],
)
def test_one_first_token_and_one_end(frames, heard):
    assert hear(frames).heard == heard


def test_without_a_stream_nothing_is_first():
    notes = hear([([5, 6], "stop")], stream=False)
    assert notes.heard == ["done"]


@pytest.mark.parametrize("reason", ["stop", "length", "abort", None])
def test_the_finish_reason_is_passed_on_as_it_was_said(reason):
    (outcome,) = hear([([5], None), ([6], reason)]).outcomes
    assert outcome.finish_reason == reason
    assert outcome.failure is None, "whether the reason is a good one is for judge to say"


def test_the_answer_is_all_ids_as_int32():
    (outcome,) = hear([([5], None), ([6, 7], None), ([8], "stop")]).outcomes
    assert outcome.tokens.tolist() == [5, 6, 7, 8]
    assert outcome.tokens.dtype == np.int32


@pytest.mark.parametrize("frames", [[], [([5], None), ([6], None)]], ids=["at once", "midway"])
@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ReplicaDied("the engine died"), ReplicaDied, "the engine died"),  # a typed failure stays what it is
        (ValueError("no such key"), BackendError, "ValueError: no such key"),  # any other becomes the backend's
    ],
)
def test_an_error_is_a_failure_with_what_had_arrived(frames, error, kind, text):
    notes = hear(frames, error)
    (outcome,) = notes.outcomes
    assert type(outcome.failure) is kind
    assert str(outcome.failure) == text
    assert outcome.tokens.tolist() == [5, 6][: len(frames)]
    assert notes.heard.count("done") == 1


def test_a_cancelled_query_is_not_heard_of_again():
    notes = Notes()

    async def cancel_midway() -> None:
        begun, never = asyncio.Event(), asyncio.Event()

        async def frames() -> AsyncIterator[Frame]:
            yield [5], None
            begun.set()
            await never.wait()

        task = asyncio.create_task(drive(frames(), Query(1, 0, NO_TOKENS, True, 8, 0.0), notes))
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()

    asyncio.run(cancel_midway())
    assert notes.heard == ["first 5", "progress 1"]


def test_every_failure_type_passes_through_unchanged():
    for kind in QueryFailed.__subclasses__():
        (outcome,) = hear([], kind("why")).outcomes
        assert type(outcome.failure) is kind
