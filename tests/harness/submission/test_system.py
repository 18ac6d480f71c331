"""The description of a system, filled from what a run recorded of its machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.submission import documents
from harness.submission.runs import Run
from harness.submission.system import FILL, default_name, describe, visible

GPU = {
    "name": "NVIDIA H200",
    "memory_bytes": 141 * 2**30,
    "uuid": "GPU-aa",
    "max_mhz": 1980,
    "pcie": "Gen5 x16",
    "nvlinks": 18,
}
MACHINE = {
    "hostname": "node",
    "cpu": "AMD EPYC 9575F",
    "cores": 128,
    "usable_cores": 128,
    "memory_bytes": 1536 * 2**30,
    "system": "Linux 6.8",
    "python": "3.11.7",
    "product": "Maker Box 3000",
    "distribution": "Ubuntu 24.04",
    "sockets": 2,
    "cores_per_socket": 64,
    "cpu_max_mhz": 5000,
    "caches": [{"level": 1, "type": "Data", "size": "48K"}, {"level": 3, "type": "Unified", "size": "256M"}],
    "disks": [{"name": "nvme0n1", "bytes": 2e12, "kind": "NVMe SSD"}],
    "network_cards": [{"name": "eth0", "kind": "Ethernet", "mbit_s": 400_000}],
}


def made(devices: list[dict[str, Any]], variables: dict[str, str] | None = None, **config: Any) -> Run:
    """A run on that machine, with only what a description looks at."""
    environment = {
        "machine": MACHINE,
        "devices": devices,
        "drivers": {"nvidia": "570.1", "cuda": "12.8"},
        "packages": {"vllm": "0.32.0", "torch": "2.13.0", "loadgen-harness": "0.1.0"},
        "variables": variables or {},
        "engines": {"vllm-0": {"dtype": "bfloat16"}},
    }
    options = {"backend": "vllm", "endpoint": [], "model": "org/model", "engine_arg": {}, "replicas": 4, **config}
    content = {
        "benchmark": "llama2-70b-99.9",
        "mode": "performance",
        "environment": environment,
        "config": options,
        "loadgen": {"version": "6.0.17"},
    }
    return Run(Path("run"), content)


def test_a_server_with_gpus_is_described_from_its_record() -> None:
    fields = describe(made([GPU, GPU]), "Acme", "closed", {}).fields
    found = {name: value for name, value in fields.items() if value and not str(value).startswith(FILL)}
    assert found == {
        "submitter": "Acme",
        "division": "closed",
        "status": "rdi",
        "system_type": "datacenter",
        "system_name": "Maker Box 3000",
        "number_of_nodes": 1,
        "host_processor_model_name": "AMD EPYC 9575F",
        "host_processors_per_node": 2,
        "host_processor_core_count": 64,
        "host_processor_frequency": "5000 MHz",
        "host_processor_caches": "L1d 48K, L3 256M",
        "host_memory_capacity": "1536 GiB",
        "host_storage_capacity": "2000 GB",
        "host_storage_type": "NVMe SSD",
        "host_network_card_count": "1",
        "host_networking": "Ethernet 400 Gb/s",
        "host_networking_topology": "single node",
        "accelerators_per_node": 2,
        "accelerator_model_name": "NVIDIA H200",
        "accelerator_memory_capacity": "141 GiB",
        "accelerator_frequency": "1980 MHz",
        "accelerator_host_interconnect": "PCIe Gen5 x16",
        "accelerator_interconnect": "NVLink, 18 links each",
        "framework": "vLLM 0.32.0",
        "operating_system": "Ubuntu 24.04, Linux 6.8",
        "other_software_stack": "PyTorch 2.13.0, CUDA 12.8, NVIDIA driver 570.1, Python 3.11.7, LoadGen 6.0.17, "
        "loadgen-harness 0.1.0",
    }


def test_what_a_machine_does_not_tell_is_asked_and_what_a_person_said_goes_first() -> None:
    described = describe(made([GPU]), "Acme", "closed", {"cooling": "liquid", "host_memory_capacity": "1.5 TiB"})
    assert set(described.questions) == {"status", "host_memory_configuration", "accelerator_memory_configuration"}
    assert described.fields["cooling"] == "liquid"
    assert described.fields["host_memory_capacity"] == "1.5 TiB"
    assert described.fields["accelerator_interconnect"] == "none (one accelerator)"


def test_of_replicas_on_other_hosts_nothing_is_taken_from_the_client() -> None:
    run = made([GPU], backend="remote", endpoint=["http://10.0.0.7:8000"])
    fields = describe(run, "Acme", "network", {}).fields
    assert not [name for name, value in fields.items() if "EPYC" in str(value) or "H200" in str(value)]
    assert fields["is_network"] == "true"
    assert str(fields["network_rate"]).startswith(FILL)
    assert default_name(run) == "4x-remote"


def test_the_gpus_counted_are_those_that_the_run_could_see() -> None:
    other = GPU | {"uuid": "GPU-bb"}
    assert visible([GPU, other], {}) == [GPU, other]
    assert visible([GPU, other], {"CUDA_VISIBLE_DEVICES": "1"}) == [other]
    assert visible([GPU, other], {"CUDA_VISIBLE_DEVICES": "GPU-bb"}) == [other]
    assert visible([GPU, other], {"CUDA_VISIBLE_DEVICES": ""}) == []
    assert default_name(made([GPU, other], {"CUDA_VISIBLE_DEVICES": "1"})) == "1xNVIDIA-H200"


WEIGHTS: dict[str, tuple[dict[str, Any] | None, dict[str, Any], dict[str, str]]] = {
    "served as they are stored": (
        {"torch_dtype": "bfloat16"},
        {},
        {"weight_data_types": "bf16", "weight_transformations": "none"},
    ),
    "cast": (
        {"dtype": "float32"},
        {},
        {"weight_data_types": "bf16", "weight_transformations": "cast from fp32 to bf16"},
    ),
    "quantised by the engine": (
        {"dtype": "bfloat16"},
        {"engine_arg": {"quantization": "fp8"}},
        {"weight_data_types": "fp8", "weight_transformations": "quantization (fp8)"},
    ),
    "quantised beforehand, in a type that only a person knows": (
        {"dtype": "bfloat16", "quantization_config": {"quant_method": "compressed-tensors"}},
        {},
        {"weight_transformations": "quantization (compressed-tensors)"},
    ),
    "a hub id that is not in the cache": (None, {}, {}),
    "no hub id and no folder any more": (None, {"model": "/gone/model"}, {}),
    "an endpoint": ({"dtype": "bfloat16"}, {"endpoint": ["http://x"], "backend": "remote"}, {}),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name: str, tmp_path: Path) -> None:
    """What is known of the weights is said, and the rest is asked."""
    stored, config, known = WEIGHTS[name]
    model = "org/model"
    if stored is not None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model/config.json").write_text(json.dumps(stored))
        model = str(tmp_path / "model")
    fields, asked = documents.measurements({"performance": made([GPU], **{"model": model, **config})}, "closed", False)
    assert fields["starting_weights_filename"] == ("model" if stored is not None else config.get("model", model))
    assert fields["input_data_types"] == "int32"
    assert {key: value for key, value in fields.items() if key.startswith("weight_") and key not in asked} == known
    assert all(fields[key].startswith(FILL) for key in asked)
    quantised = "quantization" in fields["weight_transformations"]
    text, open_point = documents.calibration([made([GPU], **{"model": model, **config})])
    assert open_point == (quantised or bool(asked))
    assert ("not quantised" in text) != open_point


def test_the_weights_of_a_hub_id_are_known_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--org--model/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    (tmp_path / "models--org--model/refs").mkdir()
    (tmp_path / "models--org--model/refs/main").write_text("abc")
    fields, asked = documents.measurements({"performance": made([GPU])}, "closed", False)
    assert (fields["weight_data_types"], fields["weight_transformations"], asked) == ("bf16", "none", {})
