"""Backends by name, and the sentence for a name that is not known."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sut.backends import BACKENDS, Generation, Plan, make_backends, refuse_unknown
from sut.backends.echo import Echo
from sut.errors import ConfigError


def plan(**changes) -> Plan:
    return Plan(
        **{
            "replicas": 1,
            "model": "",
            "dtype": "auto",
            "max_model_len": None,
            "generation": Generation(max_tokens=8),
            "stream_interval": None,
            **changes,
        }
    )


def test_echo_is_made_by_name_one_per_replica():
    backends = make_backends("echo", plan(replicas=3))
    assert [type(backend) for backend in backends] == [Echo] * 3


def test_engine_arguments_reach_the_backend():
    (backend,) = make_backends("echo", plan(engine_args={"slots": 3}))
    assert backend.capacity == 6, "twice the slots: one set at work, one waiting"


def test_an_unknown_backend_is_refused_with_the_names():
    with pytest.raises(ConfigError, match=f"unknown backend 'tgi': choose one of {', '.join(BACKENDS)}"):
        make_backends("tgi", plan())


def test_what_an_answer_is_made_with_is_greedy_unless_asked():
    how = Generation(max_tokens=8)
    assert (how.temperature, how.min_tokens, how.ignore_eos) == (0.0, 1, False)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"slot": 1}, "unknown option 'slot': did you mean 'slots'?"),  # a typo
        ({"slots": 1, "ttfft": 1}, "unknown option 'ttfft': did you mean 'ttft'?"),  # not only the first is looked at
        ({"gpu": 1}, "unknown option 'gpu': known are slots, tpot, ttft."),  # nothing near: the names, sorted
    ],
)
def test_refuse_unknown(given, sentence):
    with pytest.raises(ConfigError) as refusal:
        refuse_unknown(given, ["ttft", "tpot", "slots"], "option")
    assert str(refusal.value) == sentence


@pytest.mark.parametrize("given", [{}, {"ttft": 1}, {"ttft": 1, "slots": 2}])
def test_known_names_pass(given):
    refuse_unknown(given, ["ttft", "tpot", "slots"], "option")


def test_no_engine_is_imported_to_make_an_echo():
    program = (
        "import sys; from sut.backends import *; import sut.backends.vllm_engine\n"
        "make_backends('echo', Plan(1, '', 'auto', None, Generation(8), None))\n"
        "print(sorted({'vllm', 'torch', 'transformers', 'ray'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"
