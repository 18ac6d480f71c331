"""The compliance tests of a round as data: what LoadGen is to do in each, and what its verifier holds the log to.

Source: compliance/TEST06, TEST07/gpt-oss-120b and TEST09/gpt-oss-120b of mlcommons/inference (round v6.1). LoadGen
reads a test's settings from a file, whatever the model and scenario, over those of the run (loadgen/loadgen.cc).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.benchmarks import Number
from harness.conf import parse_conf


@dataclass(frozen=True)
class Audit:
    """`settings` are LoadGen's keys, `limits` further lines of the file that only a verifier reads; `samples` is how
    many answers the log then holds, each sample once where `distinct`; `verdict` is the file its verifier writes."""

    name: str
    samples: int
    verdict: str
    settings: Mapping[str, Number]
    limits: Mapping[str, Number] = field(default_factory=dict)
    distinct: bool = False

    def text(self) -> str:
        """The file that LoadGen reads, with the round's numbers."""
        lines = {**self.settings, **self.limits}
        return f"# {self.name}\n" + "".join(f"*.*.{key} = {value}\n" for key, value in lines.items())


_LOGGED = {"mode": 2, "accuracy_log_rng_seed": 720381539243781796}  # mode 2 is performance

AUDITS = {
    audit.name: audit
    for audit in (
        Audit(
            "TEST06",
            samples=100,
            verdict="verify_accuracy.txt",
            settings=_LOGGED
            | {
                "accuracy_log_sampling_target": 100,
                "min_query_count": 100,
                "min_duration": 0,
                "sample_concatenate_permutation": 0,
            },
        ),
        Audit(
            "TEST07",
            samples=990,
            verdict="verify_accuracy.txt",
            settings=_LOGGED
            | {
                "accuracy_log_sampling_target": 990,
                "min_query_count": 990,
                "min_duration": 0,
                "performance_issue_unique": 1,
                "sample_concatenate_permutation": 0,
            },
            limits={"test07_accuracy_threshold": 60.698},
            distinct=True,
        ),
        Audit(
            "TEST09",
            samples=6396,
            verdict="verify_output_len.txt",
            settings=_LOGGED
            | {
                "accuracy_log_sampling_target": 10_000,
                "min_query_count": 6396,
                "min_duration": 0,
                "performance_issue_unique": 1,
                "sample_concatenate_permutation": 0,
            },
            limits={"test09_min_output_tokens": 1150.38, "test09_max_output_tokens": 1406.02},
            distinct=True,
        ),
    )
}


def which(text: str) -> Audit | None:
    """The compliance test whose settings a file's text holds, and no others; None for any other. Raises ConfigError for
    one that cannot be read."""
    found = parse_conf(text.splitlines(), Path("audit.config"), refuse=False)
    settings = {key: value for (model, scenario, key), value in found.items() if (model, scenario) == ("*", "*")}
    return next((audit for audit in AUDITS.values() if settings == {**audit.settings, **audit.limits}), None)
