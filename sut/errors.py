"""What can go wrong, as types.

SutError
├── ConfigError          an option that cannot be honoured
├── SetupError           a model, dataset or replica that is not there or not ready
└── QueryFailed          one query without a right answer: data, carried in its Outcome
    ├── Rejected         the replica refused the request
    ├── Busy             the replica asks to be left alone for a while
    ├── ServerError      the replica says that it has failed
    ├── Unreachable      no connection to the replica could be made
    ├── Disconnected     the connection ended before the answer did
    ├── Malformed        bytes that are no answer: bad HTTP, bad JSON, a frame or body beyond all limits
    ├── ErrorFrame       an error inside an answer that had begun well
    ├── BadFinish        the answer ended for another reason than `stop` or `length`
    ├── CutShort         the answer ended for `length` before it was as long as was asked for
    ├── NoTokens         a finished answer without a token
    ├── OneToken         a finished answer of one token: LoadGen has no time per output token for it
    ├── Miscounted       another first token, or another number of tokens, than the replica has said
    ├── FirstTokenLate   no first token within the deadline
    ├── Stalled          no token for too long after the first
    ├── TimedOut         not complete within the deadline of the whole request
    ├── ReplicaDied      the replica went away
    ├── BackendError     the backend itself raised
    └── Abandoned        the test was interrupted or aborted before an answer
"""

from __future__ import annotations

from typing import ClassVar


class SutError(Exception):
    """Root of all errors raised on purpose; its text is one sentence for a person."""


class ConfigError(SutError):
    """An option that cannot be honoured; says what is wrong and what to do."""


class SetupError(SutError):
    """A model, dataset or replica that is not there or not ready; says what to do."""


class QueryFailed(SutError):
    """One query without a right answer.

    `kind` is its name in results; `elsewhere` says whether another replica may do better. `status` is the HTTP status
    with which a replica said so, None where there was none.
    """

    kind: ClassVar[str] = "failed"
    elsewhere: ClassVar[bool] = False

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class Rejected(QueryFailed):
    kind = "rejected"


class Busy(QueryFailed):
    """`pause` is how many seconds the replica wants to be left alone."""

    kind = "busy"
    elsewhere = True

    def __init__(self, text: str, pause: float = 1.0, status: int | None = None) -> None:
        super().__init__(text, status)
        self.pause = pause


class ServerError(QueryFailed):
    kind = "server_error"
    elsewhere = True


class Unreachable(QueryFailed):
    kind = "unreachable"
    elsewhere = True


class Disconnected(QueryFailed):
    kind = "disconnected"
    elsewhere = True


class Malformed(QueryFailed):
    kind = "malformed"
    elsewhere = True


class ErrorFrame(QueryFailed):
    kind = "error_frame"
    elsewhere = True


class BadFinish(QueryFailed):
    kind = "bad_finish"


class CutShort(QueryFailed):
    """As an engine does whose context is full."""

    kind = "cut_short"


class NoTokens(QueryFailed):
    kind = "no_tokens"


class OneToken(QueryFailed):
    kind = "one_token"


class Miscounted(QueryFailed):
    kind = "miscounted"


class FirstTokenLate(QueryFailed):
    kind = "first_token_late"
    elsewhere = True


class Stalled(QueryFailed):
    kind = "stalled"


class TimedOut(QueryFailed):
    kind = "timed_out"
    elsewhere = True


class ReplicaDied(QueryFailed):
    kind = "replica_died"
    elsewhere = True


class BackendError(QueryFailed):
    kind = "backend_error"
    elsewhere = True


class Abandoned(QueryFailed):
    kind = "abandoned"
