"""LoadGen's Server schedule, computed beforehand: when each query of a test is issued, and how many there are.

The seed is the round's, so all tests at a rate have one and the same schedule, and those at another rate the same one
stretched: a rate is tried on one stream of random numbers and not on another each time. Sources: GenerateQueries and
ScheduleDistribution in loadgen/loadgen.cc; std::mt19937 and std::exponential_distribution as libstdc++ and libc++ have
them, two 32-bit words to a double.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]


def unit_schedule(seed: int, queries: int) -> Times:
    """When queries are issued at a rate of one per second, the first at 0; at a rate r the same divided by r."""
    words = np.random.RandomState(seed % 2**32).randint(0, 2**32, 2 * queries, dtype=np.uint32).astype(np.float64)
    share = (words[0::2] + words[1::2] * 2.0**32) / 2.0**64
    gaps = -np.log1p(-np.minimum(share, np.nextafter(1.0, 0.0)))
    return np.concatenate(([0.0], np.cumsum(gaps)[:-1]))


def count_queries(schedule: Times, rate: float, seconds: float, least: int, whole: int = 1) -> int:
    """How many queries LoadGen issues in a test of so many seconds and so many queries at least, in whole passes of
    `whole` samples (sample_concatenate_permutation)."""
    reaching = int(np.searchsorted(schedule, seconds * rate)) + 1
    return -(-max(least, reaching) // whole) * whole
