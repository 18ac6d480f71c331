"""What a scenario's directories claim, and what that is judged by: benchmark, scenario, division, system type.

Sources: the model lists, mappings and ENDPOINTS_ALLOWED_MODELS of submission_checker/constants.py of
mlcommons/inference (round v6.1); the benchmarks' rows are harness/benchmarks.py's, the round's settings mlperf.conf's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.benchmarks import NAMES, SCENARIOS, Benchmark, Number, find
from harness.conf import round_settings
from harness.config import loadgen_name
from harness.submission.tree import Scenario

ROUND = "v6.1"
LOADGEN = (6, 0, 17)

CHECKED = tuple(name for name in NAMES if find(name).submittable)
# Benchmarks of the round that are no business of an LLM harness.
OTHERS = frozenset(
    [
        "resnet",
        "bert-99",
        "bert-99.9",
        "3d-unet-99",
        "3d-unet-99.9",
        "stable-diffusion-xl",
        "rgat",
        "whisper",
        "wan-2.2-t2v-a14b",
        "qwen3-vl-235b-a22b",
        "qwen3.6-27b",
        "dlrm-v3",
        "yolo-95",
        "yolo-99",
        "e2e-rag-qna",
        "e2e-rag-db",
    ]
)
DROPPED = frozenset(
    ["llama2-70b-99", "llama3.1-405b", "mixtral-8x7b", "gptj-99", "gptj-99.9", "retinanet", "pointpainting"]
)
_ALIASES = {
    "mobilenet": "resnet",
    "resnet50": "resnet",
    "llama3_1-405b": "llama3.1-405b",
    "llama3_1-8b": "llama3.1-8b",
    "llama3_1-8b-edge": "llama3.1-8b-edge",
}
# Those whose results may come from mlcommons/endpoints.
ENDPOINTS = frozenset(["llama3.1-8b", "llama3.1-8b-edge", "gpt-oss-120b", "deepseek-r1"])


@dataclass(frozen=True)
class Claim:
    """One scenario directory as what it says it is. `scenario` is spelt as LoadGen's users do, Interactive included.

    `limits` are the round's settings (user.conf keys, milliseconds) that LoadGen must have run with.
    """

    place: Scenario
    row: Benchmark
    scenario: str
    limits: Mapping[str, Number]

    @property
    def folder(self) -> Path:
        return self.place.folder

    @property
    def strict(self) -> bool:
        """The closed division's rules hold, and the network division's are those with the network added."""
        return self.place.submitter.division != "open"

    @property
    def loadgen_scenario(self) -> str:
        return loadgen_name(self.scenario)

    @property
    def model_key(self) -> str:
        return self.row.model_key(self.scenario)


def official_name(name: str, mapping: Mapping[str, object]) -> str:
    """A benchmark directory's name as MLCommons spells it; `mapping` is an open submitter's model_mapping.json."""
    own = mapping.get(name)
    return name if name in CHECKED or name in OTHERS else _ALIASES.get(name, own if isinstance(own, str) else name)


def spelt(name: str) -> str | None:
    """A scenario directory's name as submission_structure.md spells it, whatever its case; None for no scenario."""
    return next((scenario for scenario in SCENARIOS if scenario.casefold() == name.casefold()), None)


def claimed(place: Scenario, benchmark: str, scenario: str) -> Claim:
    """`benchmark` one of CHECKED, `scenario` one of SCENARIOS."""
    row = find(benchmark)
    loadgen_scenario = loadgen_name(scenario)
    return Claim(place, row, scenario, round_settings(row.model_key(scenario), loadgen_scenario))
