"""How server families are spoken to: pure functions, a query's prompt → request bytes, response bytes → an Answer.

vllm     token ids in, token ids out: /inference/v1/generate, else /v1/completions with `return_token_ids`
openai   /v1/completions of anybody: text out, counted by the server's `usage`; ids in if it takes them, else text
sglang   /generate with `input_ids`
tgi      /generate_stream and /generate: text in, ids out

Only vllm and openai have been tried on real servers; sglang and tgi follow their projects' documentation and are tested
on the protocol. KServe and llm-d are vllm or openai behind a path.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Annotated, Any, NamedTuple

import msgspec

from sut.backends import Generation
from sut.backends.http import UNREADABLE, excerpt
from sut.errors import ErrorFrame, Malformed, Miscounted, QueryFailed, Rejected

MAX_FRAME = 16 * 1024 * 1024
"""Bytes of one event: vLLM repeats a whole prompt in the first one, some 7 bytes a token."""

BULK = 4
"""Frames from which on reading them together pays."""


NONE = msgspec.Raw(b"null")
"""A field that is not there. The type `Raw | None` would take nothing but null."""


@dataclass(slots=True)
class Answer:
    """What a replica has said so far to one prompt. `said` is its own count of the tokens, None while it has not said;
    `finish` its finish reason; `done` whether the stream was closed by [DONE]."""

    tokens: array[int] = field(default_factory=lambda: array("i"))
    texts: list[str] = field(default_factory=list)
    finish: str | None = None
    said: int | None = None
    done: bool = False


class Asking(NamedTuple):
    """What all requests of a test have in common. `interval`: tokens per frame after the first."""

    model: str
    generation: Generation
    stream: bool
    interval: int


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to talk to one family of servers.

    `body` gives what stands before and after the prompt in a request; `many` the brackets around several. `decode`
    reads one event, `absorb` takes it into an Answer, `whole` reads a response that is not streamed into one Answer per
    prompt, in order. `ids_in`, `ids_out`: whether prompts and answers are token ids or text. `lean` decodes the choices
    of an event alone; `tried` says whether this has met a real server.
    """

    name: str
    route: str
    ids_in: bool
    ids_out: bool
    body: Callable[[Asking], tuple[bytes, bytes]]
    decode: Callable[[bytes], Any]
    absorb: Callable[[Any, Answer], None]
    whole: Callable[[bytes, int], list[Answer]]
    whole_route: str = ""
    many: bool = False
    lean: Callable[[bytes, int, Answer], bool] | None = None
    tried: bool = True

    def path(self, stream: bool) -> str:
        return self.route if stream or not self.whole_route else self.whole_route


# -- a stream of server-sent events -----------------------------------------------------------------------------------


class Stream:
    """Reads the events of one answer as their bytes come, cut anywhere. Raises Malformed or ErrorFrame."""

    __slots__ = ("_dialect", "_rest", "answer")

    def __init__(self, dialect: Dialect) -> None:
        self.answer = Answer()
        self._dialect = dialect
        self._rest = b""

    def feed(self, pieces: list[bytes]) -> None:
        """Read what is complete; `pieces` are consecutive bytes of the stream, best one event each."""
        if len(pieces) >= BULK and not self._rest and not self.answer.tokens:
            self._feed_any(pieces[0])  # the first event is not like the others: it may repeat the prompt
            pieces = pieces[1:]
        if not self._rest and len(pieces) >= BULK and self._feed_alike(pieces):
            return
        for piece in pieces:
            # One whole event on one line, which is the rule.
            plain = piece.startswith(b"data:") and piece.endswith(b"\n\n") and b"\r" not in piece
            if plain and not self._rest and piece.find(b"\n") == len(piece) - 2:
                self._read(piece[5:])
            else:
                self._feed_any(self._rest + piece)

    def finish(self) -> None:
        """The stream has ended: nothing may be left of an event."""
        if self._rest.endswith(b"\r"):  # which was a line end of its own
            self._feed_any(self._rest[:-1] + b"\n")
        if self._rest.strip():
            raise Malformed(f"the stream ended within a frame: {excerpt(self._rest)}")

    def _feed_any(self, data: bytes) -> None:
        if b"\r" in data:
            held = data.endswith(b"\r")  # maybe half a line end
            data = data[: len(data) - held].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + b"\r" * held
        events, _, self._rest = data.rpartition(b"\n\n")
        refuse_long(self._rest)
        for event in events.split(b"\n\n"):
            refuse_long(event)
            payload = event[5:] if event.startswith(b"data:") and b"\n" not in event else payload_of(event)
            if payload is not None:
                self._read(payload)

    def _read(self, payload: bytes) -> None:
        answer = self.answer
        if answer.done:
            raise Malformed(f"the replica sent a frame after [DONE]: {excerpt(payload)}")
        if len(payload) < 16 and payload.strip() == b"[DONE]":
            answer.done = True
            return
        try:
            frame = self._dialect.decode(payload)
        except UNREADABLE as error:
            raise Malformed(f"the replica sent a frame that cannot be read ({error}): {excerpt(payload)}") from error
        self._dialect.absorb(frame, answer)

    def _feed_alike(self, pieces: list[bytes]) -> bool:
        """Read pieces that are one event each, and all alike but for their choices; False if they are not.

        Between an answer's first event and its last, only the choice differs: what stands before and after it is taken
        from one event, which is read in full, and then proved for all by putting them together again, which costs a
        comparison of memory. scripts/bench_parse.py compares it with reading them one by one.
        """
        lean = self._dialect.lean
        model = pieces[0]
        opening = model.find(b'"choices":[') + 11
        if lean is None or opening < 11 or not model.endswith(b"}]}\n\n") or self.answer.done:
            return False
        try:
            frame = self._dialect.decode(model[5:-2] if model.startswith(b"data:") else b"")
            if frame.usage is not None or frame.error is not NONE:
                return False
            last = next(index for index in range(len(pieces), 0, -1) if pieces[index - 1].endswith(b"}]}\n\n"))
            alike, others = pieces[:last], pieces[last:]
            before, after = model[:opening], b"]}\n\n"
            choices = list(map(itemgetter(slice(opening, -4)), alike))
            if before + (after + before).join(choices) + after != b"".join(alike):
                return False
            listed = b"[" + b",".join(choices) + b"]"
            if b"\n" in listed or b"\r" in listed or b"\n" in before or b"\r" in before:  # JSON may, an event not
                return False
            if not lean(listed, last, self.answer):
                return False
        except UNREADABLE:
            return False  # the thorough way says what is wrong
        if others:
            self._feed_any(b"".join(others))
        return True


def refuse_long(event: bytes) -> None:
    if len(event) > MAX_FRAME:
        raise Malformed(f"the replica sent a frame of more than {MAX_FRAME >> 20} MB")


def payload_of(event: bytes) -> bytes | None:
    """The data of an event of any form (WHATWG HTML, 9.2.6); None for a comment or an event without data."""
    event = event.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, which only the first may have
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]

# -- vllm and openai --------------------------------------------------------------------------------------------------


class Choice(msgspec.Struct, gc=False):
    index: int = 0
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class TextChoice(msgspec.Struct, gc=False):
    index: int = 0
    text: str | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct, gc=False):
    completion_tokens: Count | None = None


class Frame(msgspec.Struct, gc=False):
    """An event, or a whole response. `error` and `message` are where servers put an error in the middle of a 200."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = NONE
    message: msgspec.Raw = NONE


class ErrorCode(msgspec.Struct):
    code: int | None = None


class TextFrame(msgspec.Struct, gc=False):
    choices: list[TextChoice] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = NONE
    message: msgspec.Raw = NONE


_decode_frame = msgspec.json.Decoder(Frame).decode
_decode_text_frame = msgspec.json.Decoder(TextFrame).decode
_decode_choices = msgspec.json.Decoder(list[Choice]).decode


def error_of(raw: bytes) -> QueryFailed:
    """An error in the middle of an HTTP 200. vLLM's streams refuse a prompt so too: then its code is that of a 4xx."""
    text = f"the replica sent an error instead of tokens: {excerpt(raw)}"
    try:
        code = msgspec.json.decode(raw, type=ErrorCode, strict=False).code
    except UNREADABLE:
        code = None
    return Rejected(text, code) if code is not None and 400 <= code < 500 and code != 429 else ErrorFrame(text, code)


def refuse_error(frame: Any) -> None:
    """Raises ErrorFrame or Rejected for a frame that is an error, Malformed for one that is nothing known."""
    for raw in (frame.error, frame.message):
        if bytes(raw) != b"null":
            raise error_of(bytes(raw))
    if frame.choices is None:
        raise Malformed("the replica sent a frame without choices")


def absorb_ids(frame: Frame, answer: Answer) -> None:
    if frame.choices is None or frame.error is not NONE:
        refuse_error(frame)
    for choice in frame.choices or ():
        absorb_choice(choice, answer)
    absorb_usage(frame, answer)


def absorb_choice(choice: Choice, answer: Answer) -> None:
    refuse_other(choice.index)
    if choice.token_ids:
        extend(answer, choice.token_ids)
    if choice.finish_reason is not None:
        finish(answer, choice.finish_reason)


def finish(answer: Answer, reason: str) -> None:
    if answer.finish is not None:
        raise Malformed(f"the replica sent a second finish reason, {reason!r} after {answer.finish!r}")
    answer.finish = reason


def refuse_other(index: int) -> None:
    if index != 0:
        raise Malformed(f"the replica sent a choice of index {index} to a single prompt")


def absorb_choices(data: bytes, events: int, answer: Answer) -> bool:
    """Several events' choices, as one JSON list; False if they are not one each."""
    choices = _decode_choices(data)
    if len(choices) != events:
        return False
    last = choices.pop()
    if answer.finish is None and not [c for c in choices if c.finish_reason is not None or c.index]:
        extend(answer, [token for c in choices if c.token_ids for token in c.token_ids])
    else:
        for choice in choices:
            absorb_choice(choice, answer)
    absorb_choice(last, answer)
    return True


def extend(answer: Answer, ids: Sequence[int]) -> None:
    if ids and answer.finish is not None:
        raise Malformed("the replica sent tokens after its finish reason")
    if ids and min(ids) < 0:
        raise Malformed("the replica sent a negative token id")
    try:
        answer.tokens.extend(ids)
    except OverflowError as error:
        raise Malformed("the replica sent a token id that is no 32-bit number") from error


def absorb_text(frame: TextFrame, answer: Answer) -> None:
    if frame.choices is None or frame.error is not NONE:
        refuse_error(frame)
    for choice in frame.choices or ():
        refuse_other(choice.index)
        if choice.text:
            if answer.finish is not None:
                raise Malformed("the replica sent text after its finish reason")
            answer.texts.append(choice.text)
        if choice.finish_reason is not None:
            finish(answer, choice.finish_reason)
    absorb_usage(frame, answer)


def absorb_usage(frame: Any, answer: Answer) -> None:
    if frame.usage is not None and frame.usage.completion_tokens is not None:
        answer.said = frame.usage.completion_tokens


def whole_openai(decode: Callable[[bytes], Any], absorb: Callable[[Any, Answer], None]) -> Any:
    """The reader of a response with one choice per prompt, matched by index; `usage` counts all of them together."""

    def whole(body: bytes, prompts: int) -> list[Answer]:
        frame = decode_body(decode, body)
        if frame.choices is None or frame.error is not NONE:
            refuse_error(frame)
        answers = [Answer() for _ in range(prompts)]
        seen = set()
        for choice in frame.choices:
            if not 0 <= choice.index < prompts or choice.index in seen:
                raise Malformed(f"the replica sent a choice of index {choice.index} to {prompts} prompts")
            seen.add(choice.index)
            number, choice.index = choice.index, 0
            absorb(type(frame)(choices=[choice]), answers[number])
        if len(seen) < prompts:
            raise Malformed(f"the replica answered {len(seen)} of {prompts} prompts")
        if frame.usage is not None and frame.usage.completion_tokens is not None:
            share_usage(answers, frame.usage.completion_tokens)
        return answers

    return whole


def share_usage(answers: list[Answer], said: int) -> None:
    """The count of a whole batch, told each answer: its own length if the sum is right."""
    if len(answers) == 1:
        answers[0].said = said
    elif said != (total := sum(len(answer.tokens) for answer in answers)):
        raise Miscounted(f"{len(answers)} answers have {total} tokens, and the replica has counted {said}")
    else:
        for answer in answers:
            answer.said = len(answer.tokens)


def decode_body(decode: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        return decode(body)
    except UNREADABLE as error:
        raise Malformed(f"the replica sent a body that cannot be read ({error}): {excerpt(body)}") from error


def around(fields: dict[str, Any], prompt: str) -> tuple[bytes, bytes]:
    """A JSON object's bytes before and after the value of its field `prompt`, which follows the others."""
    return msgspec.json.encode(fields)[:-1] + b"," + msgspec.json.encode(prompt) + b":", b"}"


def sampling(asking: Asking) -> dict[str, Any]:
    """What decides an answer, said explicitly: vLLM would take what is missing from the model's own defaults."""
    how = asking.generation
    return {
        "temperature": how.temperature,
        "top_p": how.top_p,
        "top_k": how.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": how.max_tokens,
        "min_tokens": how.min_tokens,
        "ignore_eos": how.ignore_eos,
    }


def streaming(asking: Asking) -> dict[str, Any]:
    return {"stream": True, "stream_options": {"include_usage": True}} if asking.stream else {"stream": False}


def generate_body(asking: Asking) -> tuple[bytes, bytes]:
    how = sampling(asking) | {"detokenize": False}
    if asking.stream:
        how["stream_interval"] = asking.interval
    return around({"model": asking.model, "sampling_params": how} | streaming(asking), "token_ids")


def completions_body(asking: Asking) -> tuple[bytes, bytes]:
    interval = {"stream_interval": asking.interval} if asking.stream else {}
    fields = {"model": asking.model, "return_token_ids": True}
    return around(fields | sampling(asking) | streaming(asking) | interval, "prompt")


def openai_body(asking: Asking) -> tuple[bytes, bytes]:
    """Only what the original API has: a strict server refuses any other field."""
    how = {name: value for name, value in sampling(asking).items() if name in ("temperature", "top_p", "max_tokens")}
    return around({"model": asking.model} | how | streaming(asking), "prompt")


# -- sglang -----------------------------------------------------------------------------------------------------------


class Meta(msgspec.Struct, gc=False):
    finish_reason: dict[str, Any] | None = None
    completion_tokens: Count | None = None


class SglangFrame(msgspec.Struct, gc=False):
    output_ids: list[int] | None = None
    meta_info: Meta | None = None
    error: msgspec.Raw = NONE


_decode_sglang = msgspec.json.Decoder(SglangFrame).decode
_decode_sglang_list = msgspec.json.Decoder(list[SglangFrame]).decode


def absorb_sglang(frame: SglangFrame, answer: Answer) -> None:
    """An event repeats all ids so far, or has only the new ones: the server's own count tells which."""
    if bytes(frame.error) != b"null":
        raise error_of(bytes(frame.error))
    meta, ids, have = frame.meta_info, frame.output_ids, len(answer.tokens)
    if meta is None or ids is None or meta.completion_tokens is None:
        raise Malformed("the replica sent a frame without output_ids and meta_info.completion_tokens")
    if len(ids) == meta.completion_tokens and ids[:have] == answer.tokens.tolist():
        ids = ids[have:]
    extend(answer, ids)
    answer.said = meta.completion_tokens
    if meta.finish_reason is not None:
        finish(answer, str(meta.finish_reason.get("type")))


def whole_sglang(body: bytes, prompts: int) -> list[Answer]:
    if body.lstrip().startswith(b"["):
        frames = decode_body(_decode_sglang_list, body)
    else:
        frames = [decode_body(_decode_sglang, body)]
    if len(frames) != prompts:
        raise Malformed(f"the replica answered {len(frames)} of {prompts} prompts")
    answers = [Answer() for _ in frames]
    for frame, answer in zip(frames, answers, strict=True):
        absorb_sglang(frame, answer)
    return answers


def sglang_body(asking: Asking) -> tuple[bytes, bytes]:
    how = sampling(asking)
    how["max_new_tokens"], how["min_new_tokens"] = how.pop("max_tokens"), how.pop("min_tokens")
    how["top_k"] = how["top_k"] or -1  # which is what 0 is elsewhere
    return around({"sampling_params": how, "stream": asking.stream}, "input_ids")


# -- tgi --------------------------------------------------------------------------------------------------------------


class TgiToken(msgspec.Struct, gc=False):
    id: int
    text: str = ""


class TgiDetails(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    generated_tokens: Count | None = None
    tokens: list[TgiToken] | None = None


class TgiFrame(msgspec.Struct, gc=False):
    token: TgiToken | None = None
    details: TgiDetails | None = None
    error: msgspec.Raw = NONE


_decode_tgi = msgspec.json.Decoder(TgiFrame).decode

_TGI_FINISH = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}


def absorb_tgi(frame: TgiFrame, answer: Answer) -> None:
    if bytes(frame.error) != b"null":
        raise error_of(bytes(frame.error))
    if frame.token is None and frame.details is None:
        raise Malformed("the replica sent a frame without token and details")
    if frame.token is not None:
        extend(answer, [frame.token.id])
    if frame.details is not None:
        extend(answer, [token.id for token in frame.details.tokens or ()])
        answer.said = frame.details.generated_tokens
        reason = frame.details.finish_reason
        if reason:
            finish(answer, _TGI_FINISH.get(reason, reason))


def whole_tgi(body: bytes, prompts: int) -> list[Answer]:
    answer = Answer()
    absorb_tgi(decode_body(_decode_tgi, body), answer)
    return [answer]


def tgi_body(asking: Asking) -> tuple[bytes, bytes]:
    """Greedy is TGI's own way without do_sample; it refuses a temperature of 0."""
    return around({"parameters": {"max_new_tokens": asking.generation.max_tokens, "details": True}}, "inputs")


# -- the table --------------------------------------------------------------------------------------------------------

_whole_ids = whole_openai(_decode_frame, absorb_ids)
_whole_text = whole_openai(_decode_text_frame, absorb_text)

GENERATE = Dialect("vllm", "/inference/v1/generate", True, True, generate_body, _decode_frame, absorb_ids, _whole_ids,
                   lean=absorb_choices)  # fmt: skip
COMPLETIONS = Dialect("vllm", "/v1/completions", True, True, completions_body, _decode_frame, absorb_ids, _whole_ids,
                      many=True, lean=absorb_choices)  # fmt: skip
OPENAI_IDS = Dialect("openai", "/v1/completions", True, False, openai_body, _decode_text_frame, absorb_text,
                     _whole_text)  # fmt: skip
OPENAI = Dialect("openai", "/v1/completions", False, False, openai_body, _decode_text_frame, absorb_text, _whole_text)
SGLANG = Dialect("sglang", "/generate", True, True, sglang_body, _decode_sglang, absorb_sglang, whole_sglang,
                 many=True, tried=False)  # fmt: skip
TGI = Dialect("tgi", "/generate_stream", False, True, tgi_body, _decode_tgi, absorb_tgi, whole_tgi,
              whole_route="/generate", tried=False)  # fmt: skip

DIALECTS: dict[str, tuple[Dialect, ...]] = {
    "vllm": (GENERATE, COMPLETIONS),
    "sglang": (SGLANG,),
    "tgi": (TGI,),
    "openai": (OPENAI_IDS, OPENAI),
}
"""The families by name; within one, the better way first."""
