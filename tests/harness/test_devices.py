"""Devices on doubles of NVML and AMD SMI: as many fields as a device tells, and never an error."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from harness.devices import find_devices


class Nvml(ModuleType):
    """Two H200s: the first tells all, the second neither energy nor utilisation, as MIG devices do not."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.driver = driver
        self.lost = False

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index > 1:
            raise self.NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return {"GPU-a": 0, "GPU-b": 1}[uuid]

    def nvmlDeviceGetIndex(self, handle: int) -> int:
        return handle

    def answer(self, handle: int, value: Any, told_by: tuple[int, ...] = (0, 1)) -> Any:
        if self.lost or handle not in told_by:
            raise self.NVMLError("Not Supported")
        return value

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return self.answer(handle, SimpleNamespace(gpu=97, memory=41), (0,))

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return self.answer(handle, SimpleNamespace(used=120 * 2**30, total=141 * 2**30))

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        return int(self.answer(handle, {1: 1980, 2: 3201}[kind]))

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return int(self.answer(handle, 612_345))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return int(self.answer(handle, 5_000_250, (0,)))

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return int(self.answer(handle, 61))


class AmdSmi(ModuleType):
    """One MI300X that says "N/A" for its average power, and raises for its temperature."""

    AmdSmiClkType = SimpleNamespace(GFX="gfx", MEM="mem")
    AmdSmiTemperatureType = SimpleNamespace(JUNCTION=1)
    AmdSmiTemperatureMetric = SimpleNamespace(CURRENT=0)

    class AmdSmiException(Exception):
        pass

    def amdsmi_init(self) -> None:
        pass

    def amdsmi_get_processor_handles(self) -> list[str]:
        return ["mi300x"]

    def amdsmi_get_gpu_activity(self, handle: str) -> dict[str, Any]:
        return {"gfx_activity": 88, "umc_activity": "N/A", "mm_activity": "N/A"}

    def amdsmi_get_gpu_vram_usage(self, handle: str) -> dict[str, int]:
        return {"vram_total": 196_592, "vram_used": 1_024}

    def amdsmi_get_clock_info(self, handle: str, kind: str) -> dict[str, int]:
        return {"clk": 2100} if kind == "gfx" else {"cur_clk": 1300}

    def amdsmi_get_power_info(self, handle: str) -> dict[str, Any]:
        return {"average_socket_power": "N/A", "current_socket_power": 540}

    def amdsmi_get_temp_metric(self, *_: Any) -> int:
        raise self.AmdSmiException("not supported")


FULL = {
    "utilisation": 0.97,
    "memory_utilisation": 0.41,
    "memory_bytes": 120.0 * 2**30,
    "clock_mhz": 1980.0,
    "memory_clock_mhz": 3201.0,
    "power_w": 612.345,
    "energy_j": 5000.25,
    "temperature_c": 61.0,
}
PARTIAL = {name: FULL[name] for name in FULL if name not in ("utilisation", "memory_utilisation", "energy_j")}


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    library = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return library


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (None, {"gpu-0": FULL, "gpu-1": PARTIAL}),
        (["1"], {"gpu-1": PARTIAL}),
        (["GPU-b", "GPU-a"], {"gpu-1": PARTIAL, "gpu-0": FULL}),  # CUDA_VISIBLE_DEVICES may hold UUIDs
    ],
)
def test_nvidias_devices_tell_what_they_can(nvml: Nvml, names: list[str] | None, found: dict[str, Any]) -> None:
    devices, why = find_devices(names)
    assert ({device.source: device.read() for device in devices}, why) == (found, None)


def test_a_device_that_is_lost_tells_nothing_any_more(nvml: Nvml) -> None:
    devices, _ = find_devices(None)
    nvml.lost = True
    assert [device.read() for device in devices] == [{}, {}]


def test_amds_devices_tell_what_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "amdsmi", AmdSmi("amdsmi"))
    devices, why = find_devices(None)
    assert why is None
    assert {device.source: device.read() for device in devices} == {
        "gpu-0": {
            "utilisation": 0.88,
            "memory_bytes": 2.0**30,
            "clock_mhz": 2100.0,
            "memory_clock_mhz": 1300.0,
            "power_w": 540.0,
        }
    }


@pytest.mark.parametrize(
    ("library", "names", "why"),
    [
        (None, None, "NVIDIA: nvidia-ml-py is not installed here; AMD: amdsmi is not installed here"),
        (Nvml(driver=False), None, "NVIDIA: Driver Not Loaded; AMD: amdsmi is not installed here"),
        (Nvml(), ["7"], "NVIDIA: Invalid Argument; AMD: amdsmi is not installed here"),
    ],
)
def test_what_is_not_there_is_named(
    library: ModuleType | None, names: list[str] | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    assert find_devices(names) == ([], why)


def test_a_number_that_amd_does_not_list_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "amdsmi", AmdSmi("amdsmi"))
    assert find_devices(["3"])[1] == (
        "NVIDIA: nvidia-ml-py is not installed here; AMD: AMD SMI lists 1 devices and not 3"
    )
