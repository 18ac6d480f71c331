"""Whether a running Server test can still be VALID: how many of its queries are over a limit so far.

LoadGen says so at the end of a test's schedule only. More queries over a limit than it allows in so many are INVALID
for certain, whatever comes after them, so that a probe that is hopeless need not be waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from sut.query import Outcome, Query


@dataclass(slots=True)
class Tally:
    """Counts on the SUT's loop, is read from any thread. `ttft` and `tpot` are the limits in seconds, `allowed` how
    many queries may be over each (early_stopping.py). Times count from a query's callback, which comes no sooner than
    its scheduled time: LoadGen sees no fewer over a limit."""

    ttft: float
    tpot: float
    allowed: int
    late: int = 0
    slow: int = 0
    failed: int = 0

    def first(self, query: Query) -> None:
        self.late += perf_counter() - query.issued > self.ttft

    def done(self, finished: Sequence[tuple[Query, Outcome]]) -> None:
        for _, outcome in finished:
            if outcome.failure is not None:
                self.failed += 1
            elif outcome.last_byte - outcome.first_token > self.tpot * (outcome.count - 1):
                self.slow += 1

    def hopeless(self) -> str | None:
        """Why the test cannot be VALID any more, or None."""
        if self.failed:
            return f"{self.failed} {'query has' if self.failed == 1 else 'queries have'} failed"
        for count, what in ((self.late, "first token"), (self.slow, "time per output token")):
            if count > max(0, self.allowed):
                queries = "1 query is" if count == 1 else f"{count} queries are"
                return f"{queries} over the limit on the {what}, and {max(0, self.allowed)} may be"
        return None
