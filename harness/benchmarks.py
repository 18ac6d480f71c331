"""The benchmarks as data: targets, counts, sampling, datasets and compliance tests, each with its source.

Sources: [conf] loadgen/mlperf.conf, [checker] tools/submission/submission_checker/constants.py, [ref] README and
scripts of the reference under language/, [test] compliance/, all of mlcommons/inference (round v6.1); [rules]
inference_rules.adoc of mlcommons/inference_policies. Where they disagree, the checker's values stand here.

Limits that LoadGen knows by itself (time to first token, time per output token, percentile, durations, seeds) stand in
the top-level mlperf.conf and not here: `conf.round_settings(row.model_key(scenario), loadgen_scenario)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from harness.demo import MODEL, QUESTIONS, REFERENCE
from sut.backends import Generation
from sut.errors import ConfigError

Number = int | float

SCENARIOS = ("Offline", "Server", "SingleStream", "MultiStream", "Interactive")

Groups = tuple[tuple[str, ...], ...]
"""Groups of scenarios; a submission has at least one scenario of each."""


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
    silently uses generic limits for a name it does not know.

    `dataset` ships with the harness or is None; then `files` names MLCommons' file by mode ("*" for all). `samples` is
    its size; `accuracy_set` and `accuracy_generation` say where accuracy mode asks other samples, or in another way.
    `token_lengths` is what is known of the dataset: the mean and maximum of prompts ("input_…") and of the reference's
    answers ("output_…"), "accuracy_output_mean" where the accuracy dataset differs. `first_rows` says why scores of
    the first rows do not stand for all of them.

    `required`: by system type, the scenarios a submission has (Groups). `offline_min_samples`: what an Offline test has
    at least. `ungraded`: why accuracy cannot be decided here and what to run instead; None where it can.
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
    submittable: bool = True
    files: Mapping[str, str] = field(default_factory=dict)
    accuracy_set: int | None = None
    accuracy_generation: Generation | None = None
    token_lengths: Mapping[str, Number] = field(default_factory=dict)
    first_rows: str = "the first rows of a dataset are no random draw from it"
    audits: tuple[str, ...] = ()
    required: Mapping[str, Groups] = field(default_factory=dict)
    offline_min_samples: int = 1
    interactive: bool = True
    ungraded: str | None = None

    @property
    def accuracy_samples(self) -> int:
        """The size of the accuracy dataset."""
        return self.accuracy_set or self.samples

    @property
    def metrics(self) -> tuple[str, ...]:
        """What accuracy is measured by."""
        return tuple(self.targets)

    def samples_in(self, mode: str) -> int:
        """How many samples the benchmark's own dataset has in a mode."""
        return self.accuracy_samples if mode == "accuracy" else self.samples

    def generation_in(self, mode: str) -> Generation:
        """How answers are made in a mode."""
        return (self.accuracy_generation or self.generation) if mode == "accuracy" else self.generation

    def file_in(self, mode: str) -> str | None:
        """MLCommons' dataset file for a mode, where the dataset does not ship with the harness."""
        return self.files.get(mode, self.files.get("*"))

    def model_key(self, scenario: str) -> str:
        """LoadGen has no Interactive scenario: it is Server with another model key. Raises ConfigError for a benchmark
        that has none either."""
        if scenario != "Interactive":
            return self.loadgen_model
        if not self.interactive:
            raise ConfigError(f"benchmark {self.name} has no Interactive scenario, and LoadGen no limits for one.")
        return f"{self.loadgen_model}-interactive"


def same_file(one: str, other: str) -> bool:
    """Whether two datasets, files or hub ids, are one and the same, however their paths are written."""
    return Path(one).resolve() == Path(other).resolve()


def rouge_targets(reference: Mapping[str, float], share: float) -> dict[str, Target]:
    """`share` of each reference score and ±10 % of the answers' length, as MLCommons derives them ([checker])."""
    lengths = ("tokens_per_sample", "gen_len")
    targets = {name: Target(low=score * share) for name, score in reference.items() if name not in lengths}
    return targets | {name: window(reference[name]) for name in lengths if name in reference}


def window(reference: float) -> Target:
    """±10 % of a reference length ([checker])."""
    return Target(low=reference * 0.9, high=reference * 1.1)


DATACENTER: Mapping[str, Groups] = {"datacenter": (("Offline",), ("Server", "Interactive"))}
EDGE: Mapping[str, Groups] = {"edge": (("Offline",), ("SingleStream",))}

LLAMA2_70B = Benchmark(
    name="llama2-70b-99.9",
    loadgen_model="llama2-70b",
    model="meta-llama/Llama-2-70b-chat-hf",  # [ref]
    dataset=None,
    files={"*": "open_orca_gpt4_tokenized_llama.sampled_24576.pkl"},  # [ref]
    samples=24_576,  # [checker]
    performance_samples=24_576,  # [conf]
    generation=Generation(max_tokens=1024),  # [ref] greedy; [rules] no limit below 1,024
    dtype="auto",
    max_model_len=2048,  # [ref] prompts below 1,024 tokens and 1,024 for the answer
    prompt_suffix=(29_871,),  # [ref] PR #1544: the first generated token is then a real one
    targets=rouge_targets(  # [checker]
        {"rouge1": 44.4312, "rouge2": 22.0352, "rougeL": 28.6162, "tokens_per_sample": 294.45}, 0.999
    ),
    token_lengths={"input_max": 1023, "output_max": 1024, "output_mean": 294.45},  # [ref] processorca.py, [checker]
    first_rows="the first 6,144 rows of OpenOrca's selection are of one origin (cot)",  # [ref] processorca.py
    audits=("TEST06",),  # [checker]
    required=DATACENTER,  # [checker] with its loader.py: Offline, and Server or Interactive
    offline_min_samples=24_576,  # [checker]
)

LLAMA31_8B = Benchmark(
    name="llama3.1-8b",
    loadgen_model="llama3_1-8b",
    model="meta-llama/Llama-3.1-8B-Instruct",  # [ref]
    dataset=None,
    files={"*": "cnn_eval.json"},  # [ref]
    samples=13_368,  # [checker]
    performance_samples=13_368,  # [conf]
    generation=Generation(max_tokens=128),  # [ref] greedy
    dtype="auto",
    targets=rouge_targets(  # [checker]; gen_len counts characters over all samples
        {"rouge1": 38.7792, "rouge2": 15.9075, "rougeL": 24.4957, "rougeLsum": 35.793, "gen_len": 8_167_644}, 0.99
    ),
    token_lengths={"input_max": 8000, "output_max": 128},  # [ref] download_cnndm.py
    audits=("TEST06",),  # [checker]
    required=DATACENTER,  # [checker]
    offline_min_samples=13_368,  # [checker]
)

LLAMA31_8B_EDGE = Benchmark(
    name="llama3.1-8b-edge",
    loadgen_model="llama3_1-8b-edge",
    model="meta-llama/Llama-3.1-8B-Instruct",  # [ref]
    dataset=None,
    files={"*": "sample_cnn_eval_5000.json"},  # [ref]
    samples=5000,  # [checker]
    performance_samples=5000,  # [conf]
    generation=Generation(max_tokens=128),  # [ref] greedy
    dtype="auto",
    targets=rouge_targets(  # [checker]
        {"rouge1": 39.06, "rouge2": 16.1147, "rougeL": 24.6375, "rougeLsum": 36.124, "gen_len": 3_051_113}, 0.99
    ),
    token_lengths={"input_max": 8000, "output_max": 128},  # [ref] download_cnndm.py
    required=EDGE,  # [checker]
    offline_min_samples=5000,  # [checker]
    interactive=False,  # [conf]
)

DEEPSEEK_R1 = Benchmark(
    name="deepseek-r1",
    loadgen_model="deepseek-r1",
    model="deepseek-ai/DeepSeek-R1",  # [ref]
    dataset=None,
    files={"*": "mlperf_deepseek_r1_dataset_4388_fp8_eval.pkl"},  # [ref]
    samples=4388,  # [checker]
    performance_samples=4388,  # [conf]
    generation=Generation(max_tokens=20_000),  # [ref] utils/backend_registry.py: greedy
    dtype="auto",
    max_model_len=23_140,  # [ref] 3,136 for the prompt, 20,000 for the answer, 4 for the template
    targets={"exact_match": Target(low=81.3582 * 0.99), "tokens_per_sample": window(3886.2274)},  # [checker]
    token_lengths={"input_max": 3136, "output_max": 20_000, "output_mean": 3886.2274},  # [ref], [checker]
    audits=("TEST06",),  # [checker]
    required=DATACENTER,  # [checker]
    offline_min_samples=4388,  # [checker]
    ungraded="exact_match needs MLCommons' graders (AIME, MATH-500, GPQA, MMLU-Pro, and LiveCodeBench, which runs the "
    "code that a model wrote): score mlperf_log_accuracy.json with language/deepseek-r1/eval_accuracy.py of "
    "mlcommons/inference",
)

GPT_OSS_120B = Benchmark(
    name="gpt-oss-120b",
    loadgen_model="gpt-oss-120b",
    model="openai/gpt-oss-120b",  # [ref]
    dataset=None,
    # [ref] and [test] TEST09; the reference calls the accuracy file acc_eval_inputs.parquet.
    files={"performance": "perf/perf_eval_ref.parquet", "accuracy": "acc_eval_inputs.parquet"},
    samples=6396,  # [checker]
    accuracy_set=4395,  # [checker]
    performance_samples=6396,  # [conf]
    # [ref] README: reasoning effort is low in performance and high in accuracy, and part of the prompts.
    generation=Generation(max_tokens=10_240, temperature=1.0),
    accuracy_generation=Generation(max_tokens=32_768, temperature=1.0),
    dtype="auto",
    targets={"exact_match": Target(low=83.13 * 0.99), "tokens_per_sample": Target(high=9999 * 1.1)},  # [checker]
    # [test] TEST09, [ref], [checker]
    token_lengths={"output_max": 10_240, "output_mean": 1278.2, "accuracy_output_mean": 9999},
    audits=("TEST07", "TEST09"),  # [checker]
    required=DATACENTER,  # [checker]
    offline_min_samples=6396,  # [checker]
    ungraded="exact_match needs MLCommons' graders (AIME25, GPQA, and LiveCodeBench, which runs the code that a model "
    "wrote): score mlperf_log_accuracy.json with language/gpt-oss-120b/eval_mlperf_accuracy.py of mlcommons/inference",
)

DEMO_SETTINGS: Mapping[str, Mapping[str, Number]] = {
    "*": {"use_token_latencies": 1, "sample_concatenate_permutation": 1, "performance_sample_count_override": 512},
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
    "MultiStream": {"min_duration": 10_000, "min_query_count": 64, "target_latency": 800, "samples_per_query": 8},
}


@cache
def demo() -> Benchmark:
    """The embedded default; made by scripts/make_demo_assets.py, scored with Hugging Face transformers in float32."""
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
        settings=DEMO_SETTINGS,
        targets=rouge_targets(json.loads(REFERENCE.read_text())["scores"], 0.999),
        submittable=False,
        audits=("TEST06",),  # as llama2-70b, whose rehearsal it is
        offline_min_samples=1024,
    )


ROWS = {row.name: row for row in (LLAMA2_70B, LLAMA31_8B, LLAMA31_8B_EDGE, DEEPSEEK_R1, GPT_OSS_120B)}
NAMES = ("demo", *ROWS)


def find(name: str) -> Benchmark:
    """The benchmark of that name. Raises ConfigError, listing the names."""
    if name not in NAMES:
        near = get_close_matches(name, NAMES, n=1, cutoff=0.4)
        hint = f" (nearest: {near[0]})" if near else ""
        raise ConfigError(f"unknown benchmark {name!r}{hint}: choose one of {', '.join(NAMES)}.")
    return demo() if name == "demo" else ROWS[name]
