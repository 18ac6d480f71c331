"""What travels: a Query on its way in, an Outcome on its way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sut.errors import QueryFailed

# MLCommons' TEST06 and accuracy scripts read answers as int32; the first token must have the same type as the rest
# (compliance/TEST06/run_verification.py, mlcommons/inference issue #1813).
TOKEN_DTYPE = np.int32
Tokens = npt.NDArray[np.int32]

NO_TOKENS: Tokens = np.empty(0, TOKEN_DTYPE)


@dataclass(slots=True, eq=False)
class Query:
    """One sample to be answered.

    `id` is LoadGen's response id: a pointer, valid only in the process and the test that issued it. `prompt` is a view
    of int32 token ids, shape (prompt tokens,). `stream` asks for the first token as soon as it is there. `issued` is
    the moment of LoadGen's callback, in seconds of `time.perf_counter`; `released`, in a closed loop, that at which its
    place came free: what it waited before that is no latency of any replica.
    """

    id: int
    index: int
    prompt: Tokens
    stream: bool
    max_tokens: int
    issued: float
    released: float = 0.0


@dataclass(slots=True, eq=False)
class Outcome:
    """How a query ended: an answer, or a typed failure. Times are seconds of `time.perf_counter`, 0.0 where unknown.

    `tokens` are all ids of the answer, the first included; after a failure, those that had arrived. `failure` None
    means that the replica said the answer is complete (finish reason `stop` or `length`). A replica that answers in
    text gives `text` and, as `said`, how many tokens it counted; then `tokens` may be empty.
    """

    tokens: Tokens
    finish_reason: str | None = None
    failure: QueryFailed | None = None
    replica: str = ""
    attempts: int = 1
    sent: float = 0.0
    first_token: float = 0.0
    last_byte: float = 0.0
    text: str | None = None
    said: int = 0

    @property
    def count(self) -> int:
        """How many tokens the answer has."""
        return len(self.tokens) if self.text is None else self.said


def as_tokens(ids: Sequence[int]) -> Tokens:
    """Token ids as int32, shape (n,)."""
    return np.array(ids, TOKEN_DTYPE)
