"""Is user.conf there, and does it with the round's settings explain what LoadGen reports to have run with?

Source: loadgen/test_settings_internal.cc of mlcommons/inference, which skips what it does not know without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.benchmarks import Number
from harness.conf import Conf, lookup, read_conf, refuse_key, reported_differences
from harness.submission.claim import Claim
from harness.submission.contents import Unreadable, number, read_text
from harness.submission.logs import DetailLog
from harness.submission.problem import Problem, clean, error, warning
from sut.errors import ConfigError


def check_user_conf(log: DetailLog | None, claim: Claim) -> Iterator[Problem]:
    """user.conf is there, and with the round's mlperf.conf explains the settings that the log reports."""
    path = claim.place.user_conf
    rule = "submission_checker, measurements_checks.py"
    try:
        text = read_text(path)
    except Unreadable as fault:
        yield error(path, f"user.conf {fault}", rule, "put the user.conf that LoadGen read")
        return
    if not text.strip():
        yield error(path, "user.conf is empty", rule, "put the user.conf that LoadGen read")
        return
    try:
        conf = read_conf(path, refuse=False)
    except ConfigError as fault:
        what = clean(str(fault).rstrip(".").removeprefix(f"{path}, "))
        yield error(path, what, "loadgen/test_settings_internal.cc would skip or misread it", "mend the line")
        return
    for (model, scenario, key), _ in sorted(conf.items()):
        if model in ("*", claim.model_key):
            yield from _refused(path, model, scenario, key)
    if log is not None:
        asked = _asked(conf, claim)
        reported = {key: value for key in log.values if (value := _plain(log.values[key])) is not None}
        for difference in reported_differences(asked, claim.loadgen_scenario, reported):
            rule = "submission_structure.md: the user.conf of this result; the checker of v6.1 does not compare"
            yield error(
                path, f"with the round's mlperf.conf, {difference}", rule, "put the user.conf that this run read"
            )


def _refused(path: Path, model: str, scenario: str, key: str) -> Iterator[Problem]:
    try:
        refuse_key(model, scenario, key, clean(f"{model}.{scenario}.{key}"))
    except ConfigError as fault:
        rule = "loadgen/test_settings_internal.cc skips it without a word"
        yield warning(path, clean(str(fault).rstrip(".")), rule, "remove the line")


def _plain(value: object) -> Number | None:
    return value if isinstance(value, bool) else number(value)


def _asked(conf: Conf, claim: Claim) -> dict[str, Number]:
    """What LoadGen runs with: user.conf before the round's settings; without a target_qps it takes 1."""
    keys = {key for _, _, key in conf} | set(claim.limits)
    own = {key: lookup(conf, claim.model_key, claim.loadgen_scenario, key) for key in keys}
    asked = dict(claim.limits) | {key: value for key, value in own.items() if value is not None}
    return {key: value for key, value in asked.items() if key not in _UNREPORTED} | {
        "target_qps": asked.get("target_qps", 1.0)
    }


# LoadGen reports the seeds apart (check_seeds).
_UNREPORTED = frozenset({"qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"})
