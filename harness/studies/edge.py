"""Where prompts stop being answered: what one without an answer means, and which length is asked next. Pure functions.

A length fits or it does not, and every shorter one does if it does: so the edge is found by growth and bisection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

FITS = "fits"
REFUSED = "refused"
CUT_SHORT = "cut short"
MEMORY = "memory"
LATE = "timed out"
DIED = "died"
FAILED = "failed"
NO_START = "did not start"

_KINDS = {
    "rejected": REFUSED,
    "cut_short": CUT_SHORT,
    "first_token_late": LATE,
    "stalled": LATE,
    "timed_out": LATE,
    "replica_died": DIED,
    "unreachable": DIED,
}
"""What a query's typed failure (sut/errors.py) says of its length; any other kind is a failure for no known reason."""

TOO_LONG = (None, 400, 413, 422)
"""HTTP statuses that may refuse a length: vLLM and SGLang say 400, TGI 422, a proxy 413; an engine in this process has
none. Any other is about something else than the prompt."""

DOUBTFUL = (DIED, FAILED)
"""What may be chance: such a length is asked once more, on a fresh engine if it died, and the second time counts."""

COSTLY = (LATE, DIED, MEMORY)
"""What costs a wait or a new start each time: their edge is not bisected to the token."""

COSTLY_STEPS = 4
"""Lengths asked within the last step of growth before a costly edge: it is then known to a sixteenth of that step."""

FIRST_LIMIT, LEAST_LIMIT, MARGIN = 600.0, 60.0, 10.0
"""Seconds that the first prompt may take, and any; and how much longer than expected a longer one may."""

# Names of exceptions of torch, CUDA, Python and C++; what torch's allocator for a CPU says, which raises a plain
# RuntimeError; and vLLM's two ValueErrors at its start (vllm/v1/core/kv_cache_utils.py).
_NO_MEMORY = re.compile(
    r"OutOfMemoryError|\bMemoryError\b|\bbad_alloc\b|out of memory|can't allocate memory|not enough memory"
    r"|larger than the available KV cache memory|No available memory for the cache blocks",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Probe:
    """One length asked once, or twice if the first time was doubtful (`at_first` is what was said then).

    `edge` is FITS or why it does not, `said` in whose words. `limit_s` is how long it might take. `memory_bytes` is the
    most that the engine's processes had resident meanwhile; `context` and `kv_cache_tokens` are what the replica says
    of itself, `text` whether it takes prompts as text only.
    """

    prompt_tokens: int
    output_tokens: int
    edge: str
    limit_s: float
    said: str | None = None
    status: int | None = None
    at_first: str | None = None
    ttft_s: float | None = None
    latency_s: float | None = None
    memory_bytes: int | None = None
    context: int | None = None
    kv_cache_tokens: int | None = None
    text: bool = False

    @property
    def fits(self) -> bool:
        return self.edge == FITS

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True)
class Growth:
    """Which lengths are asked: `lengths`, or else from `start`, each `factor` times the one before, up to `longest`."""

    start: int
    factor: float
    longest: int
    lengths: tuple[int, ...] = ()

    def after(self, length: int) -> int | None:
        """The next length, 0 being before the first; None after the last."""
        if self.lengths:
            return next((own for own in self.lengths if own > length), None)
        if length >= self.longest:
            return None
        return min(self.longest, max(ceil(length * self.factor), length + 1) if length else self.start)


def edge_of(kind: str, status: int | None = None, dead: bool = False, no_memory: bool = False) -> str:
    """What the failure of a length means. `dead`: its replica is gone; `no_memory`: somebody said that memory is
    out."""
    edge = _KINDS.get(kind, FAILED)
    if edge == REFUSED and not dead:
        return REFUSED if status in TOO_LONG else FAILED
    if edge == CUT_SHORT:
        return CUT_SHORT
    if no_memory and edge != LATE:
        return MEMORY
    return DIED if dead else edge


def says_no_memory(text: str) -> bool:
    """Whether the last words of an engine, or a server's error, say that there is no memory: they have no type."""
    return _NO_MEMORY.search(text) is not None


def next_length(growth: Growth, probes: Sequence[Probe]) -> int | None:
    """The prompt length to ask next, after these in the order in which they were asked; None when all is known."""
    low, high = bounds(probes)
    if high is None:
        return growth.after(low)
    asked = len(probes) - next(place for place, probe in enumerate(probes) if not probe.fits) - 1
    if high.prompt_tokens - low <= 1 or (high.edge in COSTLY and asked >= COSTLY_STEPS):
        return None
    # What the replica says of its context is asked first, and believed only when the next token does not fit.
    said = probes[-1].context
    hint = low if said is None else said - probes[-1].output_tokens
    if low < hint < high.prompt_tokens:
        return hint
    return low + 1 if said is not None and low == hint > 0 else (low + high.prompt_tokens) // 2


def bounds(probes: Sequence[Probe]) -> tuple[int, Probe | None]:
    """The longest length that fits, 0 for none, and the shortest that does not."""
    low = max((probe.prompt_tokens for probe in probes if probe.fits), default=0)
    return low, min((probe for probe in probes if not probe.fits), key=lambda probe: probe.prompt_tokens, default=None)


def time_limit(given: float | None, probes: Sequence[Probe], length: int) -> float:
    """Seconds that a prompt may take: what was given, else what the longest so far took, grown with the square of the
    length as attention does, and a wide margin."""
    if given is not None:
        return given
    known = max((probe for probe in probes if probe.latency_s), key=lambda probe: probe.prompt_tokens, default=None)
    if known is None or known.latency_s is None:
        return FIRST_LIMIT
    growth = max(1.0, length / known.prompt_tokens) ** 2
    return max(LEAST_LIMIT, MARGIN * growth * known.latency_s)


def why(probe: Probe, remote: bool) -> str:
    """Why a length does not fit, for a table."""
    where = "the server" if remote else "the engine"
    status = f" (HTTP {probe.status})" if probe.status else ""
    return {
        REFUSED: f"refused by {where}{status}",
        CUT_SHORT: f"{where}'s context is full: the answer is cut short",
        MEMORY: f"{where} ran out of memory",
        LATE: f"no answer within {probe.limit_s:,.3g} s",
        DIED: f"{where} died",
        FAILED: f"failed{status}",
        FITS: FITS,
    }[probe.edge]
