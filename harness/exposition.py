"""What a server's /metrics say of its engine: the few lines that matter, found in the bytes without reading the rest.

The format is Prometheus' text exposition: `name{label="value",…} number [timestamp]`. The names are those of

    vLLM    0.32, tried; early releases say gpu_cache_usage_perc (docs.vllm.ai, design/metrics)
    SGLang  with --enable-metrics, never tried (docs.sglang.io, references/production_metrics)
    TGI     never tried; counts tokens when an answer is complete (huggingface.co/docs, reference/metrics)

Whoever sends it may be lying: what is no number, or a negative one, is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, nan

from sut.backend import Gauges

FAMILIES: Mapping[str, Mapping[str, tuple[bytes, ...]]] = {
    "vllm": {
        "running": (b"vllm:num_requests_running",),
        "waiting": (b"vllm:num_requests_waiting",),
        "kv_cache_usage": (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc"),
        "preemptions": (b"vllm:num_preemptions_total",),
        "prompt_tokens": (b"vllm:prompt_tokens_total",),
        "generation_tokens": (b"vllm:generation_tokens_total",),
    },
    "sglang": {
        "running": (b"sglang:num_running_reqs",),
        "waiting": (b"sglang:num_queue_reqs",),
        "kv_cache_usage": (b"sglang:token_usage",),
        "prompt_tokens": (b"sglang:prompt_tokens_total",),
        "generation_tokens": (b"sglang:generation_tokens_total",),
    },
    "tgi": {
        "running": (b"tgi_batch_current_size",),
        "waiting": (b"tgi_queue_size",),
        "prompt_tokens": (b"tgi_request_input_length_sum",),
        "generation_tokens": (b"tgi_request_generated_tokens_sum",),
    },
}
"""Per family of servers: each gauge by the names it may have; the first that is there counts."""


def read_gauges(page: bytes) -> Gauges | None:
    """The gauges on a /metrics page, or None if it has none that is known. Several engines behind one server add up;
    of their KV caches the fullest counts."""
    for family in FAMILIES.values():
        found = {}
        for gauge, names in family.items():
            numbers = next((some for name in names if (some := numbers_of(page, name))), [])
            value = (max(numbers) if gauge == "kv_cache_usage" else sum(numbers)) if numbers else nan
            if isfinite(value):
                found[gauge] = value
        if found:
            return Gauges(**found)
    return None


def numbers_of(page: bytes, name: bytes) -> list[float]:
    """The numbers of all lines of exactly this name."""
    numbers = []
    at = page.find(name)
    while at >= 0:
        end = page.find(b"\n", at)
        end = len(page) if end < 0 else end
        begins_line = at == 0 or page[at - 1] == 0x0A
        rest = page[at + len(name) : end]
        if begins_line and rest[:1] in (b"{", b" ", b"\t") and (number := number_in(rest)) is not None:
            numbers.append(number)
        at = page.find(name, end)
    return numbers


def number_in(rest: bytes) -> float | None:
    """The number in what follows a name; a label's value may hold spaces and braces too."""
    words = rest[rest.rfind(b"}") + 1 :].split()
    try:
        number = float(words[0])
    except (IndexError, ValueError):
        return None
    return number if isfinite(number) and number >= 0 else None
