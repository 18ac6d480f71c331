"""What servers say, read as bytes: streams cut anywhere, whole bodies, and the requests that ask for them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sut.backends import Generation, dialects
from sut.backends.dialects import (
    BULK,
    COMPLETIONS,
    DIALECTS,
    GENERATE,
    OPENAI,
    OPENAI_IDS,
    SGLANG,
    TGI,
    Answer,
    Asking,
    Dialect,
    Stream,
)
from sut.errors import Malformed, QueryFailed

ROOT = Path(__file__).parents[3]
DONE = b"data: [DONE]\n\n"
DEEP = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

# -- doubles: what a server would send --------------------------------------------------------------------------------


def event(content: Any) -> bytes:
    return b"data: " + (content if isinstance(content, bytes) else json.dumps(content).encode()) + b"\n\n"


def compact(content: Any) -> bytes:
    """As vLLM writes JSON: no spaces."""
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def ids(*tokens: int, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """A frame of the vllm dialect."""
    return {"id": "a", "choices": [{"index": index, "token_ids": list(tokens), "finish_reason": finish}], **more}


def text(words: str, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """A frame of the openai dialect."""
    return {"id": "a", "choices": [{"index": index, "text": words, "finish_reason": finish}], **more}


def usage(count: int) -> dict[str, Any]:
    return {"id": "a", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": count}}


def sglang(*tokens: int, said: int, finish: str | None = None) -> dict[str, Any]:
    reason = {"type": finish, "length": 8} if finish else None
    return {"output_ids": list(tokens), "meta_info": {"completion_tokens": said, "finish_reason": reason}}


def tgi(token: int, finish: str | None = None, said: int | None = None) -> dict[str, Any]:
    details = {"finish_reason": finish, "generated_tokens": said} if finish else None
    return {"index": 1, "token": {"id": token, "text": "w", "special": False}, "details": details}


Sentence = tuple[list[int], str, str | None, int | None, bool]


def content(answer: Answer) -> Sentence:
    return list(answer.tokens), "".join(answer.texts), answer.finish, answer.said, answer.done


def read(dialect: Dialect, *feeds: list[bytes]) -> Sentence | type[QueryFailed]:
    """What a stream says that comes in these feeds, or the kind of failure."""
    stream = Stream(dialect)
    try:
        for pieces in feeds:
            stream.feed(pieces)
        stream.finish()
    except QueryFailed as failure:
        return type(failure)
    return content(stream.answer)


def refusal(dialect: Dialect, *frames: bytes) -> str:
    with pytest.raises(QueryFailed) as told:
        stream = Stream(dialect)
        stream.feed([b"".join(frames)])
        stream.finish()
    return f"{told.value.kind}: {told.value}"


def whole_refusal(dialect: Dialect, body: Any, prompts: int = 1) -> str:
    with pytest.raises(QueryFailed) as told:
        dialect.whole(body if isinstance(body, bytes) else json.dumps(body).encode(), prompts)
    return f"{told.value.kind}: {told.value}"


# -- a stream, cut anywhere -------------------------------------------------------------------------------------------

STREAMS: dict[str, tuple[Dialect, bytes, Sentence]] = {
    "vllm": (
        GENERATE,
        event(ids(5)) + event(ids(6, 7)) + event(ids(8, finish="length")) + event(usage(4)) + DONE,
        ([5, 6, 7, 8], "", "length", 4, True),
    ),
    "vllm, the last chunk without tokens": (
        COMPLETIONS,
        event(ids(5)) + event(ids(6)) + event(ids(finish="stop")) + DONE,
        ([5, 6], "", "stop", None, True),
    ),
    "openai": (
        OPENAI,
        # a letter of two bytes, one of four, and an escape
        b'data: {"choices":[{"index":0,"text":"\xc3\xbcber"}]}\n\n'
        + b'data: {"choices":[{"text":"\xf0\x9f\xa6\x99\\u00df"}]}\n\n'
        + event(text("", finish="stop"))
        + event(usage(3))
        + DONE,
        ([], "über🦙ß", "stop", 3, True),
    ),
    "sglang, cumulative": (
        SGLANG,
        event(sglang(5, said=1))
        + event(sglang(5, 6, 7, said=3))
        + event(sglang(5, 6, 7, said=3, finish="stop"))
        + DONE,
        ([5, 6, 7], "", "stop", 3, True),
    ),
    "sglang, incremental": (
        SGLANG,
        event(sglang(5, said=1)) + event(sglang(6, 7, said=3)) + event(sglang(said=3, finish="length")) + DONE,
        ([5, 6, 7], "", "length", 3, True),
    ),
    "sglang, incremental, one id again and again": (
        SGLANG,
        event(sglang(5, said=1)) + event(sglang(5, said=2)) + event(sglang(5, said=3, finish="length")) + DONE,
        ([5, 5, 5], "", "length", 3, True),
    ),
    "tgi": (
        TGI,
        event(tgi(5)) + event(tgi(6)) + event(tgi(2, finish="eos_token", said=3)),
        ([5, 6, 2], "", "stop", 3, False),
    ),
    "comments, other fields, no space after the colon, data on several lines": (
        GENERATE,
        b": ping\n\nevent: message\nid: 7\nretry: 5\ndata:"
        + json.dumps(ids(5)).encode()
        + b'\n: within\n\nnonsense\n\ndata: {"choices":\ndata: [{"token_ids": [6],\ndata:"finish_reason":"stop"}]}\n\n'
        + b"\n\n\ndata:[DONE]\n\n: bye\n\n",
        ([5, 6], "", "stop", None, True),
    ),
}


@pytest.fixture(params=[b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def line_end(request: pytest.FixtureRequest) -> bytes:
    return request.param


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_says_the_same_wherever_it_is_cut(name, line_end):
    dialect, data, right = STREAMS[name]
    data = data.replace(b"\n", line_end)
    assert read(dialect, [data]) == right
    for cut in range(len(data) + 1):
        assert read(dialect, [data[:cut]], [data[cut:]]) == right, f"two feeds, cut at {cut}"
        assert read(dialect, [data[:cut], data[cut:]]) == right, f"two pieces, cut at {cut}"
    letters = [data[i : i + 1] for i in range(len(data))]
    assert read(dialect, *([letter] for letter in letters)) == right
    assert read(dialect, letters) == right


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(STREAMS)), st.data())
def test_a_stream_says_the_same_in_any_feeds_of_any_pieces(name, data):
    dialect, whole, right = STREAMS[name]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=12)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    feeds: list[list[bytes]] = [[]]
    for piece in pieces:
        feeds[-1].append(piece)
        if data.draw(st.booleans()):
            feeds.append([])
    assert read(dialect, *feeds) == right


def test_line_ends_may_be_mixed():
    data = b"data: " + json.dumps(ids(5)).encode() + b"\r\n\ndata: " + json.dumps(ids(6)).encode() + b"\n\r\n"
    assert read(GENERATE, [data]) == read(GENERATE, *([data[i : i + 1]] for i in range(len(data))))
    assert read(GENERATE, [data]) == ([5, 6], "", None, None, False)


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        (DONE + event(ids(6)), "malformed: the replica sent a frame after [DONE]"),
        (DONE + DONE, "malformed: the replica sent a frame after [DONE]"),
        (event(ids(6))[:-1], "malformed: the stream ended within a frame: "),
        (b"data: [DONE]", "malformed: the stream ended within a frame: 'data: [DONE]'"),
        (b"data: [DONE]\r", "malformed: the stream ended within a frame: "),  # a line end, but no empty line
        (b"data: nonsense\n\n", "malformed: the replica sent a frame that cannot be read ("),
        (b"data:\n\n", "malformed: the replica sent a frame that cannot be read ("),
        (b'data: {"choices":[{"token_ids":[6]}]\n\n', "malformed: the replica sent a frame that cannot be read ("),
        (b"data: " + DEEP + b"\n\n", "malformed: the replica sent a frame that cannot be read ("),
        (event([ids(6)]), "malformed: the replica sent a frame that cannot be read ("),
        (event({}), "malformed: the replica sent a frame without choices"),
        (event({"usage": {"completion_tokens": 1}}), "malformed: the replica sent a frame without choices"),
        (event({"object": "x", "error": None}), "malformed: the replica sent a frame without choices"),
        # errors, where servers put them
        (event({"error": {"message": "dead"}}), "error_frame: the replica sent an error instead of tokens: "),
        (event({"error": "dead"}), "error_frame: the replica sent an error instead of tokens: '\"dead\"'"),
        (event({"object": "error", "message": "dead", "code": 500}), "error_frame: the replica sent an error"),
        (event(ids(6, error={"message": "dead"})), "error_frame: the replica sent an error"),
        (event(b'{"error":""}'), "error_frame: the replica sent an error"),
        (event(b'{"error":"\xff"}'), "error_frame: the replica sent an error"),
        (event({"error": {"message": "dead", "code": 503}}), "error_frame: the replica sent an error"),
        (event({"error": {"message": "wait", "code": 429}}), "error_frame: the replica sent an error"),
        (event({"error": {"message": "too long", "code": 400}}), "rejected: the replica sent an error"),
        (event({"error": {"message": "too long", "code": "400"}}), "rejected: the replica sent an error"),
    ],
)
@pytest.mark.parametrize("dialect", [GENERATE, OPENAI], ids=lambda dialect: dialect.name)
def test_a_stream_that_is_refused(dialect, frames, sentence):
    assert refusal(dialect, frames).startswith(sentence)


@pytest.mark.parametrize(
    ("dialect", "frames", "sentence"),
    [
        (GENERATE, event(ids(5, index=1)), "malformed: the replica sent a choice of index 1 to a single prompt"),
        (OPENAI, event(text("a", index=1)), "malformed: the replica sent a choice of index 1 to a single prompt"),
        (GENERATE, event(ids(5, finish="stop")) + event(ids(6)), "malformed: the replica sent tokens after its finish"),
        (OPENAI, event(text("a", "stop")) + event(text("b")), "malformed: the replica sent text after its finish"),
        (TGI, event(tgi(5, "length", 2)) + event(tgi(6)), "malformed: the replica sent tokens after its finish"),
        (
            SGLANG,
            event(sglang(5, said=1, finish="stop")) + event(sglang(6, said=2)),
            "malformed: the replica sent tokens after its finish",
        ),
        (GENERATE, event(ids(2**31)), "malformed: the replica sent a token id that is no 32-bit number"),
        (GENERATE, event(ids(10**30)), "malformed: the replica sent a token id that is no 32-bit number"),
        (SGLANG, event(sglang(-(2**31) - 1, said=1)), "malformed: the replica sent a negative token id"),
        (TGI, event(tgi(2**40)), "malformed: the replica sent a token id that is no 32-bit number"),
        (GENERATE, event(b'{"choices":[{"token_ids":[5.0]}]}'), "malformed: the replica sent a frame that cannot"),
        (OPENAI, event(b'{"choices":[{"text":"\xff"}]}'), "malformed: the replica sent a frame that cannot be read ("),
        (SGLANG, event({"error": {"message": "dead"}}), "error_frame: the replica sent an error"),
        (SGLANG, event({"output_ids": [5]}), "malformed: the replica sent a frame without output_ids and"),
        (SGLANG, event({"text": "a", "meta_info": {"completion_tokens": 1}}), "malformed: the replica sent a frame"),
        (TGI, event({"error": "dead", "error_type": "generation"}), "error_frame: the replica sent an error"),
        (TGI, event({"index": 1}), "malformed: the replica sent a frame without token and details"),
    ],
)
def test_what_one_dialect_refuses(dialect, frames, sentence):
    assert refusal(dialect, frames).startswith(sentence)


@pytest.mark.parametrize("index", [0, 7])
def test_the_ids_at_the_ends_of_32_bits_are_ids(index):
    frame = event(ids(*[1] * index, 2**31 - 1))
    assert read(GENERATE, [frame]) == ([1] * index + [2**31 - 1], "", None, None, False)


def test_a_frame_beyond_all_limits(monkeypatch):
    monkeypatch.setattr(dialects, "MAX_FRAME", 1 << 20)
    stream = Stream(GENERATE)
    stream.feed([b"data: " + b" " * ((1 << 20) - 6)])
    with pytest.raises(Malformed, match="a frame of more than 1 MB"):
        stream.feed([b"x"])


def test_many_small_frames_are_no_large_one(monkeypatch):
    monkeypatch.setattr(dialects, "MAX_FRAME", 200)
    assert read(GENERATE, [event(ids(1)) * 20]) == ([1] * 20, "", None, None, False)


@pytest.mark.parametrize(
    ("said", "finish"),
    [
        ("eos_token", "stop"),
        ("stop_sequence", "stop"),
        ("length", "length"),
        ("model_error", "model_error"),  # unknown here: told as it is, and judged elsewhere
    ],
)
def test_the_finish_reasons_of_tgi(said, finish):
    assert read(TGI, [event(tgi(5, said, 1))]) == ([5], "", finish, 1, False)


# -- many frames at once ----------------------------------------------------------------------------------------------

ENVELOPES: list[dict[str, Any]] = [{}, {"id": "b"}, {"created": 7}, {"usage": None}, {"error": None}]
FINISHES = st.sampled_from([None] * 12 + ["stop", "length", "abort"])


def frame(tokens: list[int], finish: str | None, envelope: dict[str, Any], index: int) -> bytes:
    return compact({"id": "a", **envelope, "choices": [{"index": index, "token_ids": tokens, "finish_reason": finish}]})


NORMAL = st.builds(
    frame,
    st.lists(st.integers(0, 99), max_size=3),
    FINISHES,
    st.sampled_from([ENVELOPES[0]] * 9 + ENVELOPES),
    st.sampled_from([0] * 30 + [1]),
)
ODD = st.sampled_from(
    [
        compact(usage(3)),
        compact(ids(5, usage={"completion_tokens": 2})),
        compact({"error": "dead"}),
        compact({"id": "a", "message": "dead"}),
        compact({"id": "a", "choices": None}),
        compact({"id": "a", "choices": []}),
        compact({"id": "a", "choices": [{"token_ids": [1]}, {"token_ids": [2]}]}),
        compact(ids(2**31)),
        compact({"id": "a", "choices": [{"token_ids": "no"}]}),
        compact(ids(5)) + compact(ids(6)),  # two events in one piece
        compact(ids(5))[:-1],
        compact(ids(5))[:-9],
        compact(ids(5)).replace(b"[5]", b"[5\n]"),  # JSON allows it, an event does not
        compact(ids(5)).replace(b"[5]", b"[5\r]"),
        compact(ids(5)).replace(b"\n\n", b"\r\n\r\n"),
        compact(ids(5)).replace(b',"finish_reason":null}', b""),  # half a choice, and the other half
        b'data: {"id":"a","choices":["finish_reason":null}]}\n\n',
        compact(ids(5))[6:],
        b": ping\n\n",
        b"event: x\n" + compact(ids(5)),
        DONE,
        b"",
        b"\n",
    ]
)


def both_ways(pieces: list[bytes], dialect: Dialect) -> tuple[Any, Any]:
    """Read with and without the short cut."""
    plain = replace(dialect, lean=None)
    return read(dialect, [compact(ids(1)), *pieces]), read(plain, [b"".join((compact(ids(1)), *pieces))])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(NORMAL, NORMAL, NORMAL, NORMAL, ODD), max_size=14))
def test_frames_read_together_say_what_they_say_one_by_one(pieces):
    quick, plain = both_ways(pieces, GENERATE)
    assert quick == plain


def test_the_short_cut_is_taken(monkeypatch):
    """Or the test above would compare nothing: alike frames are decoded as one list."""
    taken = []
    lean = GENERATE.lean
    assert lean is not None
    spied = replace(GENERATE, lean=lambda *given: taken.append(1) or lean(*given))
    pieces = [compact(ids(n)) for n in range(9)] + [compact(usage(9)), DONE]
    assert read(spied, pieces) == (list(range(9)), "", None, 9, True)
    assert len(taken) == 1


@pytest.mark.parametrize(
    "odd",
    [
        # Two frames that are no JSON, which would be when put together.
        [
            b'data: {"id":"a","choices":[{"index":0,"token_ids":[7]]}\n\n',
            b'data: {"id":"a","choices":["finish_reason":null}]}\n\n',
        ],
        [compact(ids(7)).replace(b"[7]", b"[7\n]")],  # a line that has no field name: half the frame is missing
        [compact(ids(7)).replace(b"[7]", b"[7\r]")],
        [compact(ids(7, finish="stop")), compact(ids(8))],
        [compact(ids(7, index=1))],
        [compact(ids(2**31))],
    ],
)
@pytest.mark.parametrize("place", [0, 3])
def test_what_is_wrong_within_many_frames_is_seen(odd, place):
    alike = [compact(ids(n)) for n in range(2 * BULK)]
    quick, plain = both_ways([*alike[:place], *odd, *alike[place:]], GENERATE)
    assert (quick, plain) == (Malformed, Malformed)


# -- whole bodies -----------------------------------------------------------------------------------------------------


def batch(*choices: tuple[int, list[int]], said: int | None = None, **more: Any) -> dict[str, Any]:
    content = [{"index": index, "token_ids": tokens, "finish_reason": "stop"} for index, tokens in choices]
    return {"choices": content, **({"usage": {"completion_tokens": said}} if said is not None else {}), **more}


@pytest.mark.parametrize(
    ("dialect", "body", "prompts", "right"),
    [
        (GENERATE, batch((0, [5, 6]), said=2), 1, [([5, 6], 2)]),
        (GENERATE, batch((0, [5, 6]), said=3), 1, [([5, 6], 3)]),  # told as it is; whoever counts sees it
        (COMPLETIONS, batch((0, [5]), (1, [6, 7]), said=3), 2, [([5], 1), ([6, 7], 2)]),
        (COMPLETIONS, batch((1, [6, 7]), (0, [5]), said=3), 2, [([5], 1), ([6, 7], 2)]),  # matched by index
        (COMPLETIONS, batch((0, [5]), (1, [6, 7])), 2, [([5], None), ([6, 7], None)]),
        (COMPLETIONS, batch((0, []), (1, [6]), said=1, error=None), 2, [([], 0), ([6], 1)]),
        (SGLANG, sglang(5, 6, said=2, finish="stop"), 1, [([5, 6], 2)]),
        (SGLANG, [sglang(5, said=1, finish="stop"), sglang(6, 7, said=2, finish="stop")], 2, [([5], 1), ([6, 7], 2)]),
    ],
)
def test_a_whole_body(dialect, body, prompts, right):
    answers = dialect.whole(json.dumps(body).encode(), prompts)
    assert [(list(answer.tokens), answer.said) for answer in answers] == right
    assert {answer.finish for answer in answers} == {"stop"}


def test_a_whole_body_of_text():
    frame = {**text("über", "stop"), "usage": {"completion_tokens": 4}}
    (answer,) = OPENAI.whole(json.dumps(frame).encode(), 1)
    assert content(answer) == ([], "über", "stop", 4, False)


def test_a_whole_body_of_tgi():
    details = {"finish_reason": "eos_token", "generated_tokens": 2, "tokens": [{"id": 5, "text": "w"}, {"id": 2}]}
    (answer,) = TGI.whole(json.dumps({"generated_text": "w", "details": details}).encode(), 1)
    assert content(answer) == ([5, 2], "", "stop", 2, False)


@pytest.mark.parametrize(
    ("dialect", "body", "prompts", "sentence"),
    [
        (COMPLETIONS, batch((0, [5]), (1, [6, 7]), said=4), 2, "miscounted: 2 answers have 3 tokens, and the replica"),
        (COMPLETIONS, batch((0, [5])), 2, "malformed: the replica answered 1 of 2 prompts"),
        (COMPLETIONS, batch(), 1, "malformed: the replica answered 0 of 1 prompts"),
        (COMPLETIONS, batch((0, [5]), (0, [6])), 2, "malformed: the replica sent a choice of index 0 to 2 prompts"),
        (COMPLETIONS, batch((0, [5]), (2, [6])), 2, "malformed: the replica sent a choice of index 2 to 2 prompts"),
        (COMPLETIONS, batch((-1, [5]), (0, [6])), 2, "malformed: the replica sent a choice of index -1 to 2 prompts"),
        (OPENAI, {"choices": [{"index": 1, "text": "a"}]}, 1, "malformed: the replica sent a choice of index 1 to 1"),
        (COMPLETIONS, batch((0, [2**31])), 1, "malformed: the replica sent a token id that is no 32-bit number"),
        (SGLANG, [sglang(5, said=1)], 2, "malformed: the replica answered 1 of 2 prompts"),
        (SGLANG, [], 1, "malformed: the replica answered 0 of 1 prompts"),
        # an error under HTTP 200
        (COMPLETIONS, {"error": {"message": "dead"}}, 1, "error_frame: the replica sent an error"),
        (COMPLETIONS, batch((0, [5]), error="dead"), 1, "error_frame: the replica sent an error"),
        (OPENAI, {"object": "error", "message": "dead"}, 1, "error_frame: the replica sent an error"),
        (SGLANG, {"error": {"message": "dead"}}, 1, "error_frame: the replica sent an error"),
        (SGLANG, [{"error": "dead"}], 1, "error_frame: the replica sent an error"),
        (TGI, {"error": "dead"}, 1, "error_frame: the replica sent an error"),
        # nothing known
        (COMPLETIONS, {"detail": "dead"}, 1, "malformed: the replica sent a frame without choices"),
        (COMPLETIONS, b"", 1, "malformed: the replica sent a body that cannot be read ("),
        (COMPLETIONS, b"[]", 1, "malformed: the replica sent a body that cannot be read ("),
        (COMPLETIONS, b"<html>", 1, "malformed: the replica sent a body that cannot be read ("),
        (COMPLETIONS, b'{"choices":[]}{"choices":[]}', 1, "malformed: the replica sent a body that cannot be read ("),
        (OPENAI, b'{"choices":[{"text":"\xff"}]}', 1, "malformed: the replica sent a body that cannot be read ("),
        (SGLANG, b"[", 1, "malformed: the replica sent a body that cannot be read ("),
        (TGI, {"generated_text": "w"}, 1, "malformed: the replica sent a frame without token and details"),
        *((dialect, DEEP, 1, "malformed: the replica sent a body that") for dialect in (GENERATE, OPENAI, SGLANG, TGI)),
    ],
)  # fmt: skip
def test_a_whole_body_that_is_refused(dialect, body, prompts, sentence):
    assert whole_refusal(dialect, body, prompts).startswith(sentence)


# -- requests ---------------------------------------------------------------------------------------------------------

GREEDY = Generation(max_tokens=64)
SAMPLED = Generation(max_tokens=64, min_tokens=3, temperature=0.5, top_p=0.9, top_k=40, ignore_eos=True)
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


def asked(dialect: Dialect, generation: Generation, stream: bool, prompt: Any = (1, 2)) -> dict[str, Any]:
    """A request's body as a server reads it; a field that comes twice is an error."""
    before, after = dialect.body(Asking('M "2"', generation, stream, 64))

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    return json.loads(before + json.dumps(prompt).encode() + after, object_pairs_hook=once)


# Said although it changes nothing: vLLM takes what is missing from the model's own generation config.
NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}

SAMPLING: dict[str, tuple[Generation, dict[str, Any]]] = {
    "greedy": (
        GREEDY,
        {
            "temperature": 0.0,
            "top_p": 1.0,
            "max_tokens": 64,
            "min_tokens": 1,
            "ignore_eos": False,
            "top_k": 0,
            **NEUTRAL,
        },
    ),
    "sampled": (
        SAMPLED,
        {
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 64,
            "min_tokens": 3,
            "ignore_eos": True,
            "top_k": 40,
            **NEUTRAL,
        },
    ),
}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(("generation", "sampling"), SAMPLING.values(), ids=SAMPLING)
@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        (
            GENERATE,
            lambda how, stream: {
                "model": 'M "2"',
                "token_ids": [1, 2],
                "sampling_params": how | {"detokenize": False} | ({"stream_interval": 64} if stream else {}),
                **(STREAMED if stream else {"stream": False}),
            },
        ),
        (
            COMPLETIONS,
            lambda how, stream: {
                "model": 'M "2"',
                "prompt": [1, 2],
                "return_token_ids": True,
                **how,
                **(STREAMED | {"stream_interval": 64} if stream else {"stream": False}),
            },
        ),
        (
            OPENAI,  # nothing outside the original API
            lambda how, stream: {
                "model": 'M "2"',
                "prompt": [1, 2],
                **{name: how[name] for name in ("temperature", "top_p", "max_tokens")},
                **(STREAMED if stream else {"stream": False}),
            },
        ),
        (
            SGLANG,
            lambda how, stream: {
                "input_ids": [1, 2],
                "stream": stream,
                "sampling_params": {
                    {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}.get(name, name): value
                    for name, value in how.items()
                }
                | {"top_k": how["top_k"] or -1},  # SGLang's word for all of them
            },
        ),
        (TGI, lambda how, stream: {"inputs": [1, 2], "parameters": {"max_new_tokens": 64, "details": True}}),
    ],
    ids=["generate", "completions", "openai", "sglang", "tgi"],
)
def test_a_request_has_these_fields_and_no_other(
    dialect: Dialect,
    expected: Callable[[dict[str, Any], bool], dict[str, Any]],
    generation: Generation,
    sampling: dict[str, Any],
    stream: bool,
):
    assert asked(dialect, generation, stream) == expected(dict(sampling), stream)


EVERY = [dialect for family in DIALECTS.values() for dialect in family]


@pytest.mark.parametrize("dialect", EVERY, ids=lambda dialect: dialect.name + dialect.route)
@pytest.mark.parametrize("prompt", [[1], [[1, 2], [3]], 'a "quoted"\nline – ü', ["a", "b"]], ids=str)
def test_a_prompt_of_any_form_fits_between(dialect, prompt):
    """Ids, several prompts and text: each is one JSON value in the middle."""
    body = asked(dialect, GREEDY, True, prompt)
    assert [value for value in body.values() if value == prompt] == [prompt]


def test_the_ways_of_one_family_begin_with_the_better():
    assert [dialect.route for dialect in DIALECTS["vllm"]] == ["/inference/v1/generate", "/v1/completions"]
    assert DIALECTS["openai"] == (OPENAI_IDS, OPENAI)
    assert (OPENAI_IDS.ids_in, OPENAI.ids_in) == (True, False)


@pytest.mark.parametrize(
    ("dialect", "streamed", "whole"),
    [(TGI, "/generate_stream", "/generate"), (SGLANG, "/generate", "/generate"), (OPENAI,) + ("/v1/completions",) * 2],
)
def test_where_a_request_goes(dialect, streamed, whole):
    assert (dialect.path(stream=True), dialect.path(stream=False)) == (streamed, whole)


# -- mutated responses ------------------------------------------------------------------------------------------------


def test_no_mutated_response_passes_for_another_answer():
    done = subprocess.run(
        [sys.executable, "scripts/fuzz_responses.py", "--inputs", "2000", "--seed", "7", "--processes", "1"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "2,000 inputs" in done.stdout.splitlines()[-1]
