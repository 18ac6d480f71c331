"""What differs between the runs of a study: merged, named, counted in devices."""

from __future__ import annotations

from typing import Any

import pytest

from harness.config import resolve
from harness.studies.variants import Variant, device_count, merge, refuse_clashes, resolve_variant
from sut.errors import ConfigError


def test_a_variants_options_go_over_the_common_ones_engine_arguments_one_by_one() -> None:
    common = {"replicas": 1, "dispatch": "auto", "engine_arg": {"slots": 4, "ttft": 0.1}}
    assert merge(common, {"replicas": 2, "engine_arg": {"slots": 8}}) == {
        "replicas": 2,
        "dispatch": "auto",
        "engine_arg": {"slots": 8, "ttft": 0.1},
        "engine_env": {},
    }


@pytest.mark.parametrize(
    ("engine_arg", "devices"),
    [({}, 2), ({"tensor_parallel_size": 4}, 8), ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 8)],
)
def test_devices_are_replicas_times_what_an_engine_spreads_over(engine_arg: dict[str, Any], devices: int) -> None:
    assert device_count(resolve(scenario="Offline", replicas=2, engine_arg=engine_arg)) == devices


@pytest.mark.parametrize("names", [("a b", "A_B"), ("a", "a"), ("?", "b")], ids=["one folder", "twice", "no letter"])
def test_names_that_make_no_folders_of_their_own_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        refuse_clashes(Variant(name, {}) for name in names)


def test_secrets_are_not_shown() -> None:
    variant = Variant("a", {"engine_env": {"HF_TOKEN": "precious", "OMP_NUM_THREADS": "2"}, "replicas": 2})
    assert variant.shown == {"engine_env.HF_TOKEN": "***", "engine_env.OMP_NUM_THREADS": "2", "replicas": 2}


def test_an_option_that_cannot_be_honoured_names_its_variant() -> None:
    with pytest.raises(ConfigError, match=r"^large: unknown backend 'vlm'"):
        resolve_variant({"scenario": "Offline"}, Variant("large", {"backend": "vlm"}))
