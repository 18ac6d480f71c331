"""How a person types what differs between the runs of a study."""

from __future__ import annotations

from typing import Any

import pytest

from harness.cli.variants import read_axes, read_variant
from sut.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a:", {}),
        ("a: replicas=2 dispatch=pull", {"replicas": 2, "dispatch": "pull"}),
        ("a: engine_arg.dtype=bfloat16 engine-arg.max-num-seqs=64",
         {"engine_arg": {"dtype": "bfloat16", "max_num_seqs": 64}}),
        ("a: endpoint=http://h:1 endpoint=http://h:2/v1", {"endpoint": ("http://h:1", "http://h:2/v1")}),
        ("a: serve=true stall_timeout=2.5", {"serve": True, "stall_timeout": 2.5}),
        ("a: serve=false", {"serve": False}),
        ("a: engine_arg.compilation_config='{\"level\": 3}'", {"engine_arg": {"compilation_config": {"level": 3}}}),
        ("a: engine_env.X=a=b", {"engine_env": {"X": "a=b"}}),
        ("a: stream_interval=auto", {"stream_interval": None}),
        ("a: model=meta-llama/Llama-2-7b-chat-hf", {"model": "meta-llama/Llama-2-7b-chat-hf"}),
    ],
)  # fmt: skip
def test_options_are_read_as_run_reads_them(text: str, options: dict[str, Any]) -> None:
    assert read_variant(text).options == options


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("replicas=2", "not of the form NAME"),
        (": replicas=2", "not of the form NAME"),
        ("a: replicas", "a: 'replicas' is not of the form"),
        ("a: replcas=2", "did you mean replicas?"),
        ("a: tensor_parallel_size=2", "an engine's argument is engine_arg.tensor_parallel_size"),
        ("a: replicas=two", "a: Invalid value for '--replicas'"),
        ("a: replicas=0", "a: Invalid value for '--replicas'"),
        ("a: engine_arg=2", "engine_arg needs a name"),
        ("a: replicas.x=2", "unknown option 'replicas.x'"),
        ("a: serve=perhaps", "it is true or false"),
        ("a: output_dir=/tmp", "the same for all"),
        ("a: json=true", "unknown option 'json'"),
        ("a: dataset=x", "dataset is the same for all"),
        ("a: model='x", "no closing quotation"),
    ],
)
def test_what_cannot_differ_is_refused_in_a_sentence(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_variant(text, fixed=("dataset",))
    assert said in str(refused.value)


def test_variables_of_the_process_are_no_options() -> None:
    variant = read_variant("a: env.CUDA_VISIBLE_DEVICES=0,1 env.MY_TOKEN=x replicas=2")
    assert variant.environment == {"CUDA_VISIBLE_DEVICES": "0,1", "MY_TOKEN": "x"}
    assert variant.options == {"replicas": 2}
    assert variant.shown == {"env.CUDA_VISIBLE_DEVICES": "0,1", "env.MY_TOKEN": "***", "replicas": 2}


def test_axes_are_combined_the_last_one_changing_fastest() -> None:
    found = read_axes(["replicas=1,2", "engine_arg.max_num_seqs=16, 64"])
    assert [variant.name for variant in found] == [
        "replicas=1 max_num_seqs=16",
        "replicas=1 max_num_seqs=64",
        "replicas=2 max_num_seqs=16",
        "replicas=2 max_num_seqs=64",
    ]
    assert found[3].options == {"replicas": 2, "engine_arg": {"max_num_seqs": 64}}
    assert read_axes([]) == []


@pytest.mark.parametrize("axis", ["replicas", "replicas=", "replicas=1,,2", "=1,2", "engine_arg.x={1,2}"])
def test_an_axis_that_is_none_is_refused(axis: str) -> None:
    with pytest.raises(ConfigError):
        read_axes([axis])


def test_an_option_is_varied_once() -> None:
    with pytest.raises(ConfigError, match="varied twice"):
        read_axes(["replicas=1,2", "replicas=4"])
