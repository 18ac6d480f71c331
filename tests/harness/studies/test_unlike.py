"""What may differ between releases, what must be named, and what says nothing."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from harness.studies.unlike import RULES, Kind, differences, flatten, kind_of, refuse_unknown_axes, refuse_unlike
from sut.errors import ConfigError
from tests.harness.studies.made_runs import CONFIG, ENVIRONMENT

PLAIN = {"config": CONFIG, "environment": ENVIRONMENT}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The plain result with one value replaced."""
    content = deepcopy(PLAIN)
    *way, last = path.split(".")
    place: Any = content
    for name in way:
        place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
    place[last] = value
    return content


def found(path: str, value: Any, *axes: str) -> list[Any]:
    return differences({"a": flatten(PLAIN), "b": flatten(changed(path, value))}, axes)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("config.output_dir", "elsewhere"),
        ("config.dataset", "/elsewhere/rows.jsonl"),  # its checksum is the same
        ("config.model", "/elsewhere/llama"),  # the same name
        ("environment.machine.hostname", "b"),
        ("environment.machine.memory_bytes", (16 << 30) - 4096),  # some pages
        ("environment.devices.0.uuid", "GPU-2"),
        ("environment.variables.HF_HOME", "/cache"),
        ("environment.machine.product", "a board"),  # not recorded by the other
    ],
)
def test_what_says_nothing_is_not_shown(path: str, value: Any) -> None:
    assert found(path, value) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("environment.packages.vllm", "0.12"),
        ("environment.packages.torch", "2.9"),  # a package that the other lacks
        ("environment.commit", "def"),
        ("environment.machine.python", "3.13"),
        ("environment.engines.vllm-0.version", "0.12"),
    ],
)
def test_releases_may_differ_in_what_a_release_is(path: str, value: Any) -> None:
    content = found(path, value)
    assert [one.kind for one in content] == [Kind.RELEASE]
    refuse_unlike(content)


def test_what_an_engine_chose_by_itself_is_shown_and_allowed() -> None:
    content = found("environment.engines.vllm-0.max_num_seqs", 32)
    assert [one.kind for one in content] == [Kind.CHOICE]
    refuse_unlike(content)


@pytest.mark.parametrize(
    ("path", "value", "axis"),
    [
        ("config.engine_arg.max_num_seqs", 64, "engine_arg.max_num_seqs"),
        ("config.engine_arg.block_size", 32, "engine_arg"),  # not set in the other
        ("config.settings.target_qps", 40.0, "target_qps"),
        ("config.scenario", "Interactive", "scenario"),
        ("config.benchmark", "llama3.1-8b", "benchmark"),
        ("config.model", "/models/other", "model"),
        ("config.replicas", 2, "replicas"),
        ("config.something_new", 1, None),  # not recorded by the other
        ("environment.dataset_sha256", "d2", "dataset"),
        ("environment.machine.cpu", "EPYC", "environment"),
        ("environment.devices.0.name", "L40", "environment.devices"),
        ("environment.variables.VLLM_USE_V1", "0", "environment.variables"),
        ("environment.engines.vllm-0.dtype", "float32", "dtype"),
    ],
)
def test_what_was_tested_may_differ_only_where_it_is_the_axis(path: str, value: Any, axis: str | None) -> None:
    if axis is None:
        refuse_unlike(found(path, value))
        return
    with pytest.raises(ConfigError, match=r"these runs are unlike: .* is .* in a and .* in b; .*--axis"):
        refuse_unlike(found(path, value))
    refuse_unlike(found(path, value, axis))
    assert found(path, value, axis)[0].named


def test_naming_one_axis_allows_no_other() -> None:
    content = changed("config.engine_arg.max_num_seqs", 64)
    content["config"]["replicas"] = 2
    both = differences({"a": flatten(PLAIN), "b": flatten(content)}, ["engine_arg.max_num_seqs"])
    with pytest.raises(ConfigError, match=r"replicas is 1 in a and 2 in b; .*--axis replicas\.$"):
        refuse_unlike(both)


def test_an_engine_tells_in_its_own_words_what_it_was_asked() -> None:
    content = changed("config.engine_arg.dtype", "float32")
    content["environment"]["engines"]["vllm-0"]["dtype"] = "float32"
    refuse_unlike(differences({"a": flatten(PLAIN), "b": flatten(content)}, ["engine_arg.dtype"]))


def test_an_axis_that_is_in_no_result_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"engine_arg.max_num_seq: no result has such a key; .*max_num_seqs"):
        refuse_unknown_axes(["engine_arg.max_num_seq"], [flatten(PLAIN)])


def test_every_rule_gives_its_reason_and_the_last_holds_for_the_rest() -> None:
    assert all(reason for _, _, reason in RULES)
    assert kind_of("whatever.comes.next") is Kind.IDENTITY


def test_a_result_that_is_no_table_has_no_keys() -> None:
    assert flatten({}) == {}
