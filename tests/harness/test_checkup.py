"""What `doctor` looks at: a machine of files, damaged packages, and parts that crash, hang or say nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import checkup, conf
from harness.checkup import Looks, Need, Process
from sut.guard import VARIABLE
from tests.stub_replica import Script, Stub

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# -- packages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "version"),
    [
        ({"METADATA": "Metadata-Version: 2.1\nName: odd\nVersion: 1.2+cpu\n"}, "1.2+cpu"),
        ({}, ""),  # no METADATA
        ({"METADATA": ""}, ""),  # cut off by a full disk
        ({"METADATA": "\0\0\0"}, ""),
    ],
)
def test_a_version_is_told_damaged_or_not_there(
    files: dict[str, str], version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    assert checkup.installed("odd") is None
    (tmp_path / "odd-1.2.dist-info").mkdir()
    write(tmp_path / "odd-1.2.dist-info", files)
    assert checkup.installed("odd") == version


def test_the_projects_own_metadata_say_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        "Requires-Dist: mlcommons-loadgen>=6.0.17\nRequires-Dist: ray >= 2.40 ; extra == 'ray'\nRequires-Dist: any\n"
    )
    write(tmp_path, {"odd-1.dist-info/METADATA": f"Metadata-Version: 2.1\nName: odd\nVersion: 1\n{lines}"})
    monkeypatch.syspath_prepend(str(tmp_path))
    assert checkup.needs("odd") == [Need("mlcommons-loadgen", "6.0.17", ""), Need("ray", "2.40", "ray")]
    assert checkup.needs("not-there") == []


# -- the machine -------------------------------------------------------------------------------------------------------

BOX = {
    "sys/fs/cgroup/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/memory.max": "1000000\n",
    "proc/meminfo": "MemTotal: 4000 kB\nMemAvailable:    2000 kB\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave\n",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet\n",
    "dev/nvidia0": "",
    "dev/nvidiactl": "",
    "dev/shm/x": "",
}


def test_a_machine_is_read_from_where_linux_says_it(tmp_path: Path) -> None:
    found = checkup.machine(write(tmp_path, BOX))
    assert (found.quota, found.memory, found.clock) == (1.5, 1_000_000, "hpet")  # the cgroup's limit is the lower one
    assert found.governors == {"performance", "powersave"}
    assert found.nodes == (str(tmp_path / "dev/nvidia0"),)
    assert found.usable >= 1 and 0 < found.clock_cost < 1e-3


def test_a_machine_that_says_nothing_is_none(tmp_path: Path) -> None:
    write(tmp_path, {"sys/fs/cgroup/cpu.max": "max 100000", "sys/fs/cgroup/memory.max": "max"})
    found = checkup.machine(tmp_path)
    assert (found.quota, found.memory, found.shared, found.clock, found.nodes) == (None, None, None, None, ())
    assert found.governors == frozenset()


def test_a_full_disk_is_seen_from_the_nearest_folder_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=0, f_frsize=4096))
    assert checkup.place(tmp_path / "results" / "deep") == checkup.Place(tmp_path, True, 0)
    assert not (tmp_path / "results").exists()


def test_a_place_that_is_a_file_or_tells_nothing_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").write_text("")
    assert not checkup.place(tmp_path / "results" / "x").writable

    def refuse(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "statvfs", refuse)
    assert checkup.place(tmp_path).free is None


# -- processes ---------------------------------------------------------------------------------------------------------


def test_processes_are_read_with_their_marks_whatever_their_names_are(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "1/stat": "1 (init) S 0 1",
            "1/cmdline": "/sbin/init\0",
            "20/stat": "20 (VLLM::(odd) name) S 1 20",
            "20/cmdline": "VLLM::EngineCore\0\0\0",
            "20/environ": f"A=b\0{VARIABLE}=beef\0",
            "30/cmdline": "gone meanwhile",
            "40/stat": "nonsense",
            "self/stat": "not a number",
            f"{os.getpid()}/stat": f"{os.getpid()} (python) S 1 1",
        },
    )
    assert checkup.processes(tmp_path) == [Process(1, 0, "/sbin/init"), Process(20, 1, "VLLM::EngineCore", "beef")]


def test_a_proc_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert checkup.processes(tmp_path / "none") is None


def test_a_real_process_is_found_with_its_mark() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={VARIABLE: "beef"})
    try:
        until = time.monotonic() + 10
        while not (found := [one for one in checkup.processes() or [] if (one.pid, one.mark) == (child.pid, "beef")]):
            assert time.monotonic() < until
        assert found[0].parent == os.getpid()
    finally:
        child.communicate(b"\n")


# -- what may crash or hang --------------------------------------------------------------------------------------------

DOUBLES = {
    "dies of a signal": ("import os; os.kill(os.getpid(), 11)", "its process has died: Segmentation fault"),
    "hangs": ("import time; time.sleep(60)", "no answer within 1 s"),
    "raises": ("raise RuntimeError('operator torchvision::nms does not exist\\nmore')",
               "vLLM is installed but cannot be imported (operator torchvision::nms does not exist); on a CPU, "),
    "lacks a library": ("raise OSError('libcudart.so.13: gone\\nmore')", "OSError: libcudart.so.13: gone"),
    "raises without a word": ("raise ValueError", "ValueError: no reason given"),
    "leaves": ("print('no licence'); raise SystemExit(1)", "no licence"),
    "leaves in peace": ("import os; os._exit(0)", "it said nothing"),
}  # fmt: skip
"""A package `vllm` of one line, and what is said of it."""


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a package `vllm` that goes before any other."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return write(tmp_path, {"vllm/__init__.py": ""}) / "vllm/__init__.py"


@pytest.mark.parametrize("what", DOUBLES)
def test_an_import_that_fails_is_an_answer_in_one_line(what: str, vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, said = DOUBLES[what]
    vllm.write_text(program)
    monkeypatch.setitem(checkup.LIMITS, "vllm", 1.0 if what == "hangs" else 60.0)
    began = time.monotonic()
    with Looks() as looks:
        looks.start("vllm", "vllm")
        error = looks.answer("vllm")["error"]
    assert said in error and "\n" not in error
    assert time.monotonic() - began < 30


def test_a_platform_is_told_after_whatever_the_import_prints(vllm: Path) -> None:
    write(
        vllm.parent,
        {
            "__init__.py": "print('{}'); import sys; print('warning', file=sys.stderr)",
            "engine/arg_utils.py": "class AsyncEngineArgs: ...",
            "platforms.py": "from types import SimpleNamespace as current_platform\n"
                            "current_platform = current_platform(device_type='tpu')",
        },
    )  # fmt: skip
    with Looks() as looks:
        looks.start("vllm", "vllm")
        assert looks.answer("vllm") == {"platform": "tpu"}


def test_nobody_is_left_who_looks(vllm: Path) -> None:
    vllm.write_text("import time; time.sleep(60)")
    with Looks() as looks:
        looks.start("vllm", "vllm")
        (process, *_) = looks._begun["vllm"]
    assert process.poll() is not None


def test_a_run_could_be_imported_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADGEN_HARNESS_API_KEY", "s3cret\n")
    with Looks() as looks:
        looks.start("harness", "harness")
        answer = looks.answer("harness")
    assert answer["round"] is True
    assert list(answer["wrong"]) == ["API key"]
    assert "s3cret" not in str(answer)


def test_a_user_conf_that_loadgen_would_not_read_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"user.conf": "demo.Server.target_qpz = 4\n"}) / "user.conf"
    monkeypatch.setattr(conf, "default_file", lambda name: path if name == path.name else None)
    answer = checkup.look_at_harness()
    assert answer["wrong"]["user.conf"].endswith("LoadGen knows no key 'target_qpz'; did you mean 'target_qps'?")
    assert answer["round"] is False


def test_a_server_is_told_as_a_run_would_find_it() -> None:
    with Stub(Script(model="some")) as stub, Looks() as looks:
        looks.start("one", "endpoint", stub.url)
        answer = looks.answer("one")
        looks.start("none", "endpoint", "http://127.0.0.1:9")
        assert "cannot connect" in looks.answer("none")["error"]
    assert (answer["model"], answer["answers"], answer["max_model_len"]) == ("some", "token ids", 4096)
    assert 0 < answer["round_trip"] < 1


class Nvml:
    """Two GPUs, the second with memory in use."""

    NVML_CLOCK_SM = NVML_CLOCK_MEM = NVML_TEMPERATURE_GPU = NVML_NVLINK_MAX_LINKS = 0

    class NVMLError(Exception):
        pass

    def __getattr__(self, name: str) -> object:
        def refuse(*_: object) -> None:
            raise self.NVMLError("not supported")

        return refuse

    def nvmlInit(self) -> None:
        pass

    nvmlShutdown = nvmlInit

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index > 1:
            raise self.NVMLError("Invalid Argument")
        return index

    nvmlDeviceGetIndex = nvmlDeviceGetHandleByIndex

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "H200"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=150 * GIB, used=handle * 61 * GIB)


@pytest.mark.parametrize(
    ("variable", "seen", "why"),
    [
        (None, {"gpu-0": 0, "gpu-1": 61 * GIB}, None),
        ("1", {"gpu-1": 61 * GIB}, None),
        ("1, 0", {"gpu-1": 61 * GIB, "gpu-0": 0}, None),
        ("7", {}, "NVIDIA: Invalid Argument"),
        ("GPU-abc", {}, "NVIDIA: not supported"),
        ("-1", {}, "NVIDIA: not supported"),
        ("", {}, "it is empty"),
    ],
)
def test_devices_are_those_that_a_variable_shows(
    variable: str | None, seen: dict[str, float], why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    for name in checkup.HIDING:
        monkeypatch.delenv(name, raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    answer = checkup.look_at_devices()
    assert (answer["count"], answer["kinds"], answer["used"]) == (2, ["H200"], seen)
    assert (answer["why"] or "").startswith(why or "")
