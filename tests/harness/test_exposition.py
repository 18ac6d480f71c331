"""A server's /metrics: real pages, and what a server must not be able to do to us."""

from __future__ import annotations

from math import nan

import pytest

from harness.exposition import number_in, read_gauges
from sut.backend import Gauges

VLLM = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="demo"} 12.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="demo"} 0.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="demo",reason="capacity"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="demo",reason="deferred"} 0.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="demo"} 0.004397215097105112
# HELP vllm:num_preemptions_total Cumulative number of preemption from the engine.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="demo"} 0.0
# HELP vllm:num_preemptions_created Cumulative number of preemption from the engine.
# TYPE vllm:num_preemptions_created gauge
vllm:num_preemptions_created{engine="0",model_name="demo"} 1.7952991639398708e+09
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="demo"} 274.0
# HELP vllm:prompt_tokens_created Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="demo"} 1.7952991639398828e+09
# HELP vllm:prompt_tokens_by_source_total Number of prompt tokens by source.
# TYPE vllm:prompt_tokens_by_source_total counter
vllm:prompt_tokens_by_source_total{engine="0",model_name="demo",source="local_compute"} 274.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="demo",source="local_cache_hit"} 0.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="demo",source="external_kv_transfer"} 0.0
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="demo"} 1079.0
# HELP vllm:generation_tokens_created Number of generation tokens processed.
# TYPE vllm:generation_tokens_created gauge
vllm:generation_tokens_created{engine="0",model_name="demo"} 1.7952991639399981e+09
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="demo"} 199.0
vllm:iteration_tokens_total_sum{engine="0",model_name="demo"} 1353.0
"""
"""Of a vllm serve 0.32.0 while it answers: every line that speaks of what is read, and some neighbours."""

SGLANG = b"""\
# HELP sglang:prompt_tokens_total Number of prefill tokens processed.
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{model_name="meta-llama/Llama-3.1-8B-Instruct"} 8.128902e+06
# HELP sglang:generation_tokens_total Number of generation tokens processed.
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{model_name="meta-llama/Llama-3.1-8B-Instruct"} 7.557572e+06
# TYPE sglang:token_usage gauge
sglang:token_usage{model_name="meta-llama/Llama-3.1-8B-Instruct"} 0.28
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="meta-llama/Llama-3.1-8B-Instruct"} 162.0
# TYPE sglang:num_used_tokens gauge
sglang:num_used_tokens{model_name="meta-llama/Llama-3.1-8B-Instruct"} 123859.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{model_name="meta-llama/Llama-3.1-8B-Instruct"} 2826.0
"""
"""Of SGLang's own documentation."""

TGI = b"""\
# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 4
# TYPE tgi_queue_size gauge
tgi_queue_size 1
# TYPE tgi_request_generated_tokens histogram
tgi_request_generated_tokens_bucket{le="1.2"} 0
tgi_request_generated_tokens_bucket{le="+Inf"} 7
tgi_request_generated_tokens_sum 640
tgi_request_generated_tokens_count 7
tgi_request_input_length_sum 301
tgi_request_input_length_count 7
"""
"""Made by the names of TGI's documentation."""


@pytest.mark.parametrize(
    ("page", "gauges"),
    [
        (VLLM, Gauges(12, 0, 0.004397215097105112, 0, 274, 1079)),
        (SGLANG, Gauges(162, 2826, 0.28, nan, 8128902, 7557572)),
        (TGI, Gauges(4, 1, nan, nan, 301, 640)),
    ],
)
def test_each_family_by_its_own_names(page: bytes, gauges: Gauges) -> None:
    assert same(read_gauges(page), gauges)


def same(one: Gauges | None, other: Gauges) -> bool:
    return one is not None and all(a == b or (a != a and b != b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("page", "running"),
    [
        (b"vllm:num_requests_running 3", 3),  # no line end, at the very beginning
        (b"x 1\nvllm:num_requests_running 3.0\n", 3),
        (b'vllm:num_requests_running{engine="0"} 3.0 1718000000000\n', 3),  # with a moment
        (b'vllm:num_requests_running{m="a } 9 \\" # {"} 3.0\n', 3),  # whatever a label holds
        (b"vllm:num_requests_running\t3\r\n", 3),
        (b'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_running{engine="1"} 4.0\n', 7),
        (b"vllm:num_requests_running 1\nvllm:num_requests_running lies\n", 1),  # one of two engines is heard
        (b"# HELP vllm:num_requests_running 5\n", None),  # no sample
        (b"vllm:num_requests_running_by_reason 5\n", None),  # another name
        (b"other_vllm:num_requests_running 5\n", None),
        (b"<html>vllm:num_requests_running 5</html>", None),
        (b"vllm:num_requests_running NaN\n", None),
        (b"vllm:num_requests_running -1\n", None),
        (b"vllm:num_requests_running +Inf\n", None),
        (b"vllm:num_requests_running 1e999\n", None),
        (b"vllm:num_requests_running\n", None),
        (b"vllm:num_requests_running{\n", None),
        (b"vllm:num_requests_running{engine=0} \xff\xfe\n", None),
        (b"vllm:num_requests_running 1e308\n" * 3, None),  # their sum is no number
        (b"", None),
        (bytes(range(256)) * 10, None),
    ],
)
def test_what_counts_as_a_number_of_running_requests(page: bytes, running: float | None) -> None:
    gauges = read_gauges(page)
    assert (None if gauges is None else gauges.running) == running


def test_of_several_engines_the_fullest_cache_counts() -> None:
    gauges = read_gauges(b'vllm:kv_cache_usage_perc{engine="0"} 0.2\nvllm:kv_cache_usage_perc{engine="1"} 0.9\n')
    assert gauges is not None and gauges.kv_cache_usage == 0.9


def test_an_earlier_vllm_has_another_name_for_its_cache() -> None:
    gauges = read_gauges(b"vllm:gpu_cache_usage_perc 0.5\n")
    assert gauges is not None and gauges.kv_cache_usage == 0.5


@pytest.mark.parametrize("rest", [b"", b"{", b"}", b"{}", b"{} ", b" }1", b" 1}"])
def test_what_is_cut_off_is_no_number(rest: bytes) -> None:
    assert number_in(rest) in (None, 1.0)


def test_many_lines_of_one_name_are_read_once_each() -> None:
    gauges = read_gauges(b"vllm:num_requests_running 1\n" * 100_000)
    assert gauges is not None and gauges.running == 100_000
