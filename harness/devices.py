"""What the accelerators of this machine are doing, from their vendors' libraries: NVML (package nvidia-ml-py) and AMD
SMI (package amdsmi, which comes with ROCm).

Both were seen on doubles only, as no such device was there: NVML's calls are those of nvidia-ml-py 13, AMD SMI's calls
and units those that PyTorch 2.13 uses (torch.cuda.utilization and its neighbours). vLLM's platforms for TPU and XPU
offer names and sizes, and nothing that changes while a test runs, so those devices have no readings.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Any

Readings = dict[str, float]


@dataclass(frozen=True, slots=True)
class Device:
    """One device: its name in a timeline, and what it says at this moment; what it does not tell is left out."""

    source: str
    read: Callable[[], Readings]


def find_devices(names: Sequence[str] | None) -> tuple[list[Device], str | None]:
    """The devices of these names, as CUDA_VISIBLE_DEVICES has them (numbers or UUIDs; None: all that there are), or
    else why there are none."""
    reasons = []
    for vendor, find in (("NVIDIA", nvidia), ("AMD", amd)):
        try:
            if found := find(names):
                return found, None
            reasons.append(f"{vendor}: no device")
        except DeviceError as error:
            reasons.append(f"{vendor}: {error}")
    return [], "; ".join(reasons)


class DeviceError(Exception):
    """A vendor's library is not there, or does not find what it is asked for."""


def nvidia(names: Sequence[str] | None) -> list[Device]:
    """NVIDIA's devices; NVML stays open as long as the process. Raises DeviceError."""
    nvml = _import("pynvml", "nvidia-ml-py")
    try:
        nvml.nvmlInit()
        if names is None:
            names = [str(index) for index in range(nvml.nvmlDeviceGetCount())]
        handles = [_nvidia_handle(nvml, name) for name in names]
        return [Device(f"gpu-{nvml.nvmlDeviceGetIndex(h)}", partial(read_nvidia, nvml, h)) for h in handles]
    except nvml.NVMLError as error:
        raise DeviceError(str(error)) from error


def _nvidia_handle(nvml: Any, name: str) -> Any:
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)


def read_nvidia(nvml: Any, handle: Any) -> Readings:
    """One device's readings. Power is NVML's mean over the last second or so, energy counts from the driver's start."""
    asked: Mapping[str, Callable[[], float]] = {
        "utilisation": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        "memory_utilisation": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).memory / 100,
        "memory_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
        "clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "energy_j": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000,
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    }
    return _answered(asked, nvml.NVMLError)


def amd(names: Sequence[str] | None) -> list[Device]:
    """AMD's devices, by AMD SMI's own numbers, which may differ from HIP's. Raises DeviceError."""
    smi = _import("amdsmi", "amdsmi")
    try:
        smi.amdsmi_init()
        handles = list(smi.amdsmi_get_processor_handles())
    except smi.AmdSmiException as error:
        raise DeviceError(str(error)) from error
    numbers = range(len(handles)) if names is None else [int(name) for name in names if name.isdigit()]
    if names is not None and (len(numbers) < len(names) or max(numbers, default=0) >= len(handles)):
        raise DeviceError(f"AMD SMI lists {len(handles)} devices and not {', '.join(names)}")
    return [Device(f"gpu-{n}", partial(read_amd, smi, handles[n])) for n in numbers]


def read_amd(smi: Any, handle: Any) -> Readings:
    """One device's readings; AMD SMI says "N/A" for what a device does not tell."""

    def power() -> Any:
        told = smi.amdsmi_get_power_info(handle)
        average = told["average_socket_power"]
        return told["current_socket_power"] if average == "N/A" else average

    def clock(kind: str) -> Any:
        told = smi.amdsmi_get_clock_info(handle, getattr(smi.AmdSmiClkType, kind))
        return told["cur_clk"] if "cur_clk" in told else told["clk"]

    def temperature() -> Any:
        place, now = smi.AmdSmiTemperatureType.JUNCTION, smi.AmdSmiTemperatureMetric.CURRENT
        return smi.amdsmi_get_temp_metric(handle, place, now)

    asked: Mapping[str, Callable[[], Any]] = {
        "utilisation": lambda: float(smi.amdsmi_get_gpu_activity(handle)["gfx_activity"]) / 100,
        "memory_utilisation": lambda: float(smi.amdsmi_get_gpu_activity(handle)["umc_activity"]) / 100,
        "memory_bytes": lambda: float(smi.amdsmi_get_gpu_vram_usage(handle)["vram_used"]) * 2**20,
        "clock_mhz": lambda: clock("GFX"),
        "memory_clock_mhz": lambda: clock("MEM"),
        "power_w": power,
        "temperature_c": temperature,
    }
    return _answered(asked, smi.AmdSmiException)


def _answered(asked: Mapping[str, Callable[[], Any]], refusal: type[Exception]) -> Readings:
    """What was answered with a number."""
    readings = {}
    for metric, ask in asked.items():
        try:
            readings[metric] = float(ask())
        except (refusal, ValueError, KeyError, AttributeError):  # not supported here, "N/A", or another release
            continue
    return readings


def _import(module: str, package: str) -> Any:
    """A vendor's library, which may print when its driver is missing. Raises DeviceError."""
    try:
        with redirect_stdout(None):
            return importlib.import_module(module)
    except ImportError as error:
        raise DeviceError(f"{package} is not installed here") from error
    except (OSError, KeyError) as error:  # amdsmi without its shared library
        raise DeviceError(f"{package} cannot be loaded ({error})") from error
