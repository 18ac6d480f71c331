"""What can go wrong, as types.

SutError
├── ConfigError          an option that cannot be honoured
├── SetupError           a model, dataset or replica that is not there or not ready
└── QueryFailed          one query without a right answer: data, carried in its Outcome
    ├── Rejected         the replica refused the request
    ├── BadFinish        the answer ended for another reason than `stop` or `length`
    ├── NoTokens         a finished answer without a token
    ├── OneToken         a finished answer of one token: LoadGen has no time per output token for it
    ├── Miscounted       an answer that does not begin with the first token that was reported
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
    """One query without a right answer. `kind` is its name in results."""

    kind: ClassVar[str] = "failed"


class Rejected(QueryFailed):
    kind = "rejected"


class BadFinish(QueryFailed):
    kind = "bad_finish"


class NoTokens(QueryFailed):
    kind = "no_tokens"


class OneToken(QueryFailed):
    kind = "one_token"


class Miscounted(QueryFailed):
    kind = "miscounted"


class FirstTokenLate(QueryFailed):
    kind = "first_token_late"


class Stalled(QueryFailed):
    kind = "stalled"


class TimedOut(QueryFailed):
    kind = "timed_out"


class ReplicaDied(QueryFailed):
    kind = "replica_died"


class BackendError(QueryFailed):
    kind = "backend_error"


class Abandoned(QueryFailed):
    kind = "abandoned"
