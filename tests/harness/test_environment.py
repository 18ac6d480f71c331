"""What a result says of its environment: enough to explain it, and never a secret."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from harness import environment
from harness.config import without_userinfo

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


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://u:P@h/", "http://h/"),
        ("https://token@hub.example:8443/a?x=b@c", "https://hub.example:8443/a?x=b@c"),
        ("http://a:1,https://u:p@ss@b:2", "http://a:1,https://b:2"),
        ("http://h/path/a@b and http://h?q=a@b", "http://h/path/a@b and http://h?q=a@b"),  # an @ that ends no password
        ("user@host", "user@host"),
    ],
)
def test_a_url_loses_its_password(text: str, clean: str) -> None:
    assert without_userinfo(text) == clean
    assert environment.variables({"HF_ENDPOINT": text}) == {"HF_ENDPOINT": clean}


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


# -- what a system description asks ------------------------------------------------------------------------------------

SERVER = {
    "proc/cpuinfo": "".join(
        f"processor\t: {n}\nmodel name\t: EPYC\nphysical id\t: {n // 4}\ncpu cores\t: 2\n\n" for n in range(8)
    ),
    "etc/os-release": 'NAME="Linux"\nPRETTY_NAME="Some Linux 12 (bookworm)"\n',
    "sys/class/dmi/id/sys_vendor": "Maker Inc.\n",
    "sys/class/dmi/id/product_name": "Box 3000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "4121000\n",
    "sys/devices/system/cpu/cpu0/cache/index0/level": "1\n",
    "sys/devices/system/cpu/cpu0/cache/index0/type": "Data\n",
    "sys/devices/system/cpu/cpu0/cache/index0/size": "48K\n",
    "sys/block/nvme0n1/size": "2000000000\n",
    "sys/block/nvme0n1/device/model": "fast\n",
    "sys/block/sda/size": "1000\n",
    "sys/block/sda/queue/rotational": "1\n",
    "sys/block/sda/device/model": "slow\n",
    "sys/block/loop0/size": "8\n",
    "sys/class/net/eth0/type": "1\n",
    "sys/class/net/eth0/speed": "400000\n",
    "sys/class/net/eth0/device/uevent": "",
    "sys/class/net/ib0/type": "32\n",
    "sys/class/net/ib0/speed": "-1\n",
    "sys/class/net/ib0/device/uevent": "",
    "sys/class/net/lo/type": "772\n",
}


def test_hardware_is_read_from_where_linux_says_it(tmp_path: Path) -> None:
    for name, text in SERVER.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert environment.hardware(tmp_path) == {
        "product": "Maker Inc. Box 3000",
        "distribution": "Some Linux 12 (bookworm)",
        "sockets": 2,
        "cores_per_socket": 2,
        "cpu_max_mhz": 4121,
        "caches": [{"level": 1, "type": "Data", "size": "48K"}],
        "disks": [
            {"name": "nvme0n1", "bytes": 1_024_000_000_000, "kind": "NVMe SSD"},
            {"name": "sda", "bytes": 512_000, "kind": "HDD"},
        ],
        "network_cards": [
            {"name": "eth0", "kind": "Ethernet", "mbit_s": 400_000},
            {"name": "ib0", "kind": "InfiniBand", "mbit_s": None},
        ],
    }


def test_hardware_that_says_nothing_is_null(tmp_path: Path) -> None:
    found = environment.hardware(tmp_path)
    assert {found[name] for name in ("product", "distribution", "sockets", "cores_per_socket", "cpu_max_mhz")} == {None}
    assert (found["caches"], found["disks"], found["network_cards"]) == ([], [], [])


class Nvml(ModuleType):
    """Two GPUs; the second tells nothing but its name and memory, as some drivers do."""

    NVML_NVLINK_MAX_LINKS = 3
    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def __getattr__(self, name: str) -> Any:
        first = {
            "nvmlDeviceGetUUID": "GPU-1",
            "nvmlDeviceGetMaxPcieLinkGeneration": 5,
            "nvmlDeviceGetMaxPcieLinkWidth": 16,
            "nvmlDeviceGetMaxClockInfo": 1980,
            "nvmlDeviceGetNvLinkState": 1,
        }

        def answer(handle: int, *more: int) -> Any:
            if handle == 1 or more == (2,):
                raise self.NVMLError("not supported")
            return first[name]

        if name not in first:
            raise AttributeError(name)
        return answer

    def nvmlInit(self) -> None:
        pass

    nvmlShutdown = nvmlInit

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "H200"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=150 * 2**30)

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.1"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 12080


def test_gpus_tell_what_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml("pynvml"))
    bare = {"name": "H200", "memory_bytes": 150 * 2**30, "uuid": None, "max_mhz": None, "pcie": None, "nvlinks": None}
    full = bare | {"uuid": "GPU-1", "max_mhz": 1980, "pcie": "Gen5 x16", "nvlinks": 2}
    assert environment.devices() == [full, bare]
    assert environment.drivers() == {"nvidia": "570.1", "cuda": "12.8"}
