"""The benchmarks as data: limits, targets, counts and sampling, each with its source.

Sources: [conf] loadgen/mlperf.conf and [checker] tools/submission/submission_checker/constants.py of
mlcommons/inference (round v6.1), [rules] inference_rules.adoc of mlcommons/inference_policies, [ref] the reference's
README and scripts. Limits that LoadGen knows by itself stand in the top-level mlperf.conf, not here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache

from harness.demo import MODEL, QUESTIONS, REFERENCE
from sut.backends import Generation
from sut.errors import ConfigError

Number = int | float

SCENARIOS = ("Offline", "Server", "SingleStream", "MultiStream", "Interactive")


@dataclass(frozen=True)
class Target:
    """What a metric must reach: at least `low`, at most `high` (None: no bound)."""

    low: float | None = None
    high: float | None = None

    def fault(self, value: float) -> str | None:
        """What is wrong with a value, or None if it meets the target."""
        if self.low is not None and value < self.low:
            return f"is {value:g}, below {self.low:g}"
        if self.high is not None and value > self.high:
            return f"is {value:g}, above {self.high:g}"
        return None


@dataclass(frozen=True)
class Benchmark:
    """One row. `settings` are user.conf keys by scenario ("*" for all) that LoadGen does not know by itself.

    `loadgen_model` is the key LoadGen looks its limits up with; it differs from the benchmark's name, and LoadGen
    silently uses generic limits for a name it does not know. `samples` is the size of the benchmark's own dataset.
    """

    name: str
    loadgen_model: str
    model: str
    dataset: str | None
    samples: int
    performance_samples: int
    generation: Generation
    dtype: str
    max_model_len: int | None = None
    prompt_suffix: tuple[int, ...] = ()
    settings: Mapping[str, Mapping[str, Number]] = field(default_factory=dict)
    targets: Mapping[str, Target] = field(default_factory=dict)
    audits: tuple[str, ...] = ()
    submittable: bool = True

    def model_key(self, scenario: str) -> str:
        """LoadGen has no Interactive scenario: it is Server with another model key."""
        return f"{self.loadgen_model}-interactive" if scenario == "Interactive" else self.loadgen_model


def rouge_targets(reference: Mapping[str, float], share: float) -> dict[str, Target]:
    """`share` of each reference score and ±10 % of its tokens per sample, as MLCommons derives them ([checker])."""
    targets = {name: Target(low=reference[name] * share) for name in ("rouge1", "rouge2", "rougeL")}
    length = reference["tokens_per_sample"]
    return targets | {"tokens_per_sample": Target(low=length * 0.9, high=length * 1.1)}


@cache
def _demo() -> Benchmark:
    """The embedded default; made by scripts/make_demo_assets.py, scored with Hugging Face transformers in float32."""
    scores = json.loads(REFERENCE.read_text())["scores"]
    return Benchmark(
        name="demo",
        loadgen_model="demo",
        model=str(MODEL),
        dataset=str(QUESTIONS),
        samples=1024,
        performance_samples=512,
        generation=Generation(max_tokens=160),
        # In float32 the answers do not depend on what they are batched with; in bfloat16 a near-tie can fall either
        # way.
        dtype="float32",
        max_model_len=8192,
        settings={
            "*": {
                "use_token_latencies": 1,
                "sample_concatenate_permutation": 1,
                "performance_sample_count_override": 512,
            },
            # VALID on any machine, fast or slow: a count to reach and no duration.
            "Offline": {"min_duration": 0, "min_query_count": 1024, "target_qps": 1.0},
            # LoadGen's early stopping needs at least 459 queries when none is over the limits.
            "Server": {
                "target_latency": 0,
                "ttft_latency": 2000,
                "tpot_latency": 200,
                "target_latency_percentile": 99,
                "min_duration": 10_000,
                "min_query_count": 512,
                "target_qps": 20.0,
            },
            # The interactive limits of llama2-70b [conf].
            "Interactive": {"ttft_latency": 450, "tpot_latency": 40},
            "SingleStream": {"min_duration": 10_000, "min_query_count": 64, "target_latency": 100},
            "MultiStream": {
                "min_duration": 10_000,
                "min_query_count": 64,
                "target_latency": 800,
                "samples_per_query": 8,
            },
        },
        targets=rouge_targets(scores, 0.999),
        audits=("TEST06",),
        submittable=False,
    )


@cache
def _llama2_70b() -> Benchmark:
    reference = {"rouge1": 44.4312, "rouge2": 22.0352, "rougeL": 28.6162, "tokens_per_sample": 294.45}  # [checker]
    return Benchmark(
        name="llama2-70b-99.9",
        loadgen_model="llama2-70b",
        model="meta-llama/Llama-2-70b-chat-hf",
        dataset=None,  # the members' bucket or `dataset prepare openorca`
        samples=24_576,
        performance_samples=24_576,
        generation=Generation(max_tokens=1024),  # [ref] greedy, 1,024, no truncation below
        dtype="auto",
        max_model_len=2048,  # [ref] prompts below 1,024 tokens and 1,024 for the answer
        prompt_suffix=(29_871,),  # [ref] PR #1544: the first generated token is then a real one
        targets=rouge_targets(reference, 0.999),
        audits=("TEST06",),
    )


@cache
def _llama31_8b() -> Benchmark:
    lows = {"rouge1": 38.391408, "rouge2": 15.748425, "rougeL": 24.250743, "rougeLsum": 35.43507}  # [checker]
    return Benchmark(
        name="llama3.1-8b",
        loadgen_model="llama3_1-8b",
        model="meta-llama/Llama-3.1-8B-Instruct",
        dataset=None,
        samples=13_368,
        performance_samples=13_368,
        generation=Generation(max_tokens=128),  # [ref]
        dtype="auto",
        targets={name: Target(low=low) for name, low in lows.items()} | {"gen_len": Target(7_350_879.6, 8_984_408.4)},
        audits=("TEST06",),
    )


_BENCHMARKS = {"demo": _demo, "llama2-70b-99.9": _llama2_70b, "llama3.1-8b": _llama31_8b}
NAMES = tuple(_BENCHMARKS)


def find(name: str) -> Benchmark:
    """The benchmark of that name. Raises ConfigError, listing the names."""
    if name not in _BENCHMARKS:
        near = get_close_matches(name, NAMES, n=1, cutoff=0.4)
        hint = f" (nearest: {near[0]})" if near else ""
        raise ConfigError(f"unknown benchmark {name!r}{hint}: choose one of {', '.join(NAMES)}.")
    return _BENCHMARKS[name]()
