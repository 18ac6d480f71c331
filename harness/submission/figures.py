"""Do the figures of a performance log fit each other, as figures of one test must?

LoadGen computes them all from the same samples (loadgen/results.cc of mlcommons/inference), so a figure changed
by hand contradicts another. LoadGen logs numbers with six digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise

from harness.benchmarks import Number
from harness.submission.claim import Claim
from harness.submission.logs import DetailLog

NS = 1e9

PERCENTILES = ("50.00", "90.00", "95.00", "97.00", "99.00", "99.90")
LATENCY = ("result_{}_latency_ns", "result_{}_percentile_latency_ns")
FIRST_TOKEN = ("result_first_token_{}_latency_ns", "result_first_token_{}_percentile_latency_ns")
PER_TOKEN = ("result_time_to_output_token_{}", "result_time_per_output_token_{}_percentile_ns")


def samples_of(log: DetailLog) -> Number | None:
    """How many samples a performance test issued."""
    queries, each = log.number("generated_query_count"), log.number("generated_samples_per_query")
    return None if queries is None or each is None else queries * each


def measured_seconds(log: DetailLog, claim: Claim) -> float | None:
    """Seconds that LoadGen counts: up to the last answer (Offline), the last schedule (Server), the last issue."""
    if claim.scenario == "Offline":
        longest = log.number("result_max_latency_ns")
        return None if longest is None else longest / NS
    key = "result_scheduled_samples_per_sec" if claim.loadgen_scenario == "Server" else _QPS
    rate, count = log.number(key), log.number("result_query_count")
    return None if not rate or count is None else (count - 1) / rate


_QPS = "result_qps_with_loadgen_overhead"


def contradictions(log: DetailLog, claim: Claim) -> Iterator[str]:
    families = [LATENCY] + ([FIRST_TOKEN, PER_TOKEN] if claim.scenario != "Offline" else [])
    for family in families:
        yield from _disorder(log, *family)
    if claim.scenario != "Offline":
        for name in PERCENTILES:
            first, whole = FIRST_TOKEN[1].format(name), LATENCY[1].format(name)
            if _above(log.number(first), log.number(whole)):
                yield f"{first} is above {whole}"
    yield from _disagreeing_rates(log, claim)
    yield from _disagreeing_clocks(log, claim)


def _disorder(log: DetailLog, plain: str, percentile: str) -> Iterator[str]:
    """Minimum, percentiles and maximum rise, and the mean lies between the ends."""
    keys = [plain.format("min"), *(percentile.format(name) for name in PERCENTILES), plain.format("max")]
    if gone := [key for key in (*keys, plain.format("mean")) if log.number(key) is None]:
        yield f"{gone[0]} is {log.show(gone[0])}"
        return
    for lower, higher in pairwise(keys):
        if _above(log.number(lower), log.number(higher)):
            yield f"{lower} is above {higher}"
    mean = plain.format("mean")
    if _above(log.number(keys[0]), log.number(mean)) or _above(log.number(mean), log.number(keys[-1])):
        yield f"{mean} is not between {keys[0]} and {keys[-1]}"


def _above(lower: Number | None, higher: Number | None) -> bool:
    return lower is not None and higher is not None and lower > higher


def _near(one: float, other: float, share: float) -> bool:
    return abs(one - other) <= share * max(abs(one), abs(other))


def _disagreeing_rates(log: DetailLog, claim: Claim) -> Iterator[str]:
    """Samples and tokens per second, times the time they are of, give the counts; LoadGen logs six digits."""
    issued, tokens = samples_of(log), tokens_per_sample(log, claim)
    if claim.scenario == "Offline":
        rate, longest = log.number("result_samples_per_second"), log.number("result_max_latency_ns")
        if rate is None or longest is None or issued is None or not _near(rate * longest / NS, issued, 1e-4):
            yield "result_samples_per_second times result_max_latency_ns is not the number of samples"
    if claim.loadgen_scenario == "Server":
        scheduled, done = log.number("result_scheduled_samples_per_sec"), log.number("result_completed_samples_per_sec")
        planned = log.number("generated_query_duration")
        if not scheduled or not done or issued is None or planned is None:
            yield "the rates of samples are missing"
            return
        if not _near((issued - 1) / scheduled, planned / NS, 0.01):
            yield "result_scheduled_samples_per_sec does not fit generated_query_duration"
        if done > scheduled * 1.0001:
            yield "more samples were completed per second than were scheduled"
        yield from _disagreeing_tokens(log, tokens)
    if claim.scenario == "SingleStream":
        yield from _disagreeing_estimates(log)
    most = claim.row.generation.max_tokens
    if claim.scenario != "SingleStream" and (tokens is None or not 1 <= tokens <= most + 1):
        yield f"answers have {'no' if tokens is None else f'{tokens:.1f}'} tokens on average, and 1 to {most} can be"


def _disagreeing_estimates(log: DetailLog) -> Iterator[str]:
    """SingleStream's rate is of the mean latency; early stopping estimates percentiles of TTFT from above."""
    rate, mean = log.number("result_qps_without_loadgen_overhead"), log.number("result_mean_latency_ns")
    if rate is None or not mean or not _near(rate * mean / NS, 1, 1e-4):
        yield "result_qps_without_loadgen_overhead is not one by result_mean_latency_ns"
    highest = log.number(FIRST_TOKEN[0].format("max"))
    for name, percentile in (("ss", "90.00"), ("ms", "99.00")):
        key, lowest = f"early_stopping_latency_{name}", FIRST_TOKEN[1].format(percentile)
        estimate = log.number(key)
        if estimate is None or (estimate and (_above(log.number(lowest), estimate) or _above(estimate, highest))):
            yield f"{key} is not between {lowest} and the maximum"


def _disagreeing_tokens(log: DetailLog, tokens: float | None) -> Iterator[str]:
    """LoadGen also logs tokens by the sum of latencies (in tokens per nanosecond)."""
    other, mean = log.number("result_token_throughput"), log.number("result_mean_latency_ns")
    if tokens is not None and other and mean and not _near(other * mean, tokens, 1e-3):
        yield "result_completed_tokens_per_second and result_token_throughput tell of different numbers of tokens"


def tokens_per_sample(log: DetailLog, claim: Claim) -> float | None:
    """Mean tokens of an answer, out of the rates; None where LoadGen logs none."""
    if claim.scenario == "Offline":
        tokens, samples = log.number("result_tokens_per_second"), log.number("result_samples_per_second")
        return tokens / samples if tokens is not None and samples else None
    tokens, samples = log.number("result_completed_tokens_per_second"), log.number("result_completed_samples_per_sec")
    count = log.number("result_query_count")
    return tokens / samples * (count - 1) / count if tokens is not None and samples and count else None


def _disagreeing_clocks(log: DetailLog, claim: Claim) -> Iterator[str]:
    """The wall clock, the log's own clock and the measured time are of one test."""
    wall = wall_seconds(log)
    if wall is None:
        yield "power_begin and power_end are no times"
        return
    end = next((line.time_ms / 1000 for line in log.lines if line.key == "power_end"), 0.0)
    if wall > 1.01 * end + 1:
        yield f"the test took {wall:.1f} s by the wall clock, and the log ended after {end:.1f} s"
    measured = measured_seconds(log, claim)
    if measured is not None and measured > 1.01 * wall + 1:
        yield f"{measured:.1f} s were measured in a test that took {wall:.1f} s"


def wall_seconds(log: DetailLog) -> float | None:
    """From power_begin to power_end, which LoadGen writes as local times."""
    begin, end = (_when(log.text(key)) for key in ("power_begin", "power_end"))
    return None if begin is None or end is None else (end - begin).total_seconds()


def _when(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, "%m-%d-%Y %H:%M:%S.%f")
    except ValueError:
        return None
