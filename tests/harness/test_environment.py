"""What a result says of its environment: enough to explain it, and never a secret."""

from __future__ import annotations

import json

import pytest

from harness import environment

SECRETS = {
    "MY_API_KEY": "s3cret",
    "HF_TOKEN": "s3cret",
    "VLLM_API_KEY": "s3cret",
    "HF_HUB_TOKEN_PATH": "s3cret",
    "VLLM_ssl_password": "s3cret",
    "NVIDIA_CREDENTIALS": "s3cret",
    "AWS_SECRET_ACCESS_KEY": "s3cret",
    "LOADGEN_HARNESS_API_KEY": "s3cret",
}


def test_variables_that_change_engines_are_kept_and_the_rest_is_not() -> None:
    kept = {"VLLM_CPU_KVCACHE_SPACE": "4", "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "0", "LD_PRELOAD": "x.so"}
    other = {"HOME": "/root", "PATH": "/bin", "EDITOR": "vi", "LD_PRELOAD_PATH": "no"}
    assert environment.variables(kept | other | SECRETS) == dict(sorted(kept.items()))


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_gets_into_a_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "s3cret")
    assert "s3cret" not in json.dumps(environment.describe())


def test_a_description_names_machine_versions_and_commit() -> None:
    found = environment.describe()
    assert found["machine"]["usable_cores"] >= 1
    assert found["machine"]["memory_bytes"] > 2**20
    assert {"mlcommons-loadgen", "numpy"} <= set(found["packages"])
    assert found["commit"] is None or len(found["commit"].rstrip("+")) == 12
    assert isinstance(found["devices"], list)
