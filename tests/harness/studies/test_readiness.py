"""Replicas brought up by `readiness`, measured against stubs that know the truth, and nothing left behind."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest

from harness.studies import makers
from harness.studies.readiness import all_of
from sut.backends import Plan, serve
from sut.backends.serve import Server

ROOT = Path(__file__).parent.parent.parent.parent
FLEET, STUB = ROOT / "tests/stub_fleet.py", ROOT / "tests/stub_replica.py"

# A server that is the create command itself; a stub ends with its stdin.
ITSELF = f"sleep 300 | {sys.executable} {STUB} --port {{port}}"
AT_PORT = "http://127.0.0.1:{port}"


@dataclass(frozen=True)
class Done:
    code: int
    err: str
    folder: Path

    @property
    def findings(self) -> dict[str, Any]:
        return json.loads((self.folder / "findings.json").read_text())

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.findings["rows"]

    def group(self, number: int) -> dict[str, Any]:
        return json.loads((self.folder / f"points/group-{number}/point.json").read_text())


def words_of(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "harness", "readiness", "--output-dir", str(folder), "--quiet", *options]


def readiness(folder: Path, *options: str) -> Done:
    """`python -m harness readiness …` to its end; whatever it started has its folder's name in its environment."""
    mark = {**os.environ, "READINESS_TEST": str(folder)}
    process = subprocess.run(words_of(folder, *options), cwd=ROOT, capture_output=True, text=True, timeout=50, env=mark)
    assert not left_of(folder), process.stderr
    return Done(process.returncode, process.stderr, folder)


def left_of(folder: Path) -> list[int]:
    """Processes that a study in this folder has started and that still run, after a moment to end."""
    needle = f"READINESS_TEST={folder}\0".encode()
    for _ in range(100):
        found = []
        for process in psutil.process_iter():
            try:
                if needle in Path(f"/proc/{process.pid}/environ").read_bytes():
                    found.append(process.pid)
            except OSError:
                continue
        if not found:
            return []
        time.sleep(0.05)
    return found


class Fleet:
    """Stubs in another process that are created by a packet; what the harness knows of them are two commands."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        for index, port in enumerate(told["ports"]):
            (folder / f"url-{index}").write_text(f"http://127.0.0.1:{port}\n")
        packet = f"bash -c 'printf {{index}} >/dev/udp/127.0.0.1/{told['control']}'"
        self.gone = folder / "gone"
        self.options = [
            "--create-cmd",
            f"{packet}; cat {folder}/url-{{index}}",
            "--delete-cmd",
            f"echo {{name}} >> {self.gone}",
            "--ready-timeout",
            "30",
        ]

    def deleted(self) -> list[str]:
        return sorted(self.gone.read_text().split(), key=lambda name: int(name.split("-")[1]))

    def truth(self) -> dict[str, Any]:
        """Ends the fleet."""
        out, _ = self._process.communicate()
        return json.loads(out)


@contextmanager
def fleet_of(folder: Path, count: int, delay: str, *extra: str) -> Iterator[Fleet]:
    words = [sys.executable, str(FLEET), "--count", str(count), "--delay", delay, *extra]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Fleet(process, folder)
    finally:
        process.kill()
        process.communicate()


def files_of(folder: Path) -> dict[str, tuple[int, str]]:
    """Each file's time and hash."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest()) for p in paths}


def is_healthy(url: str) -> bool:
    with suppress(OSError), urlopen(f"{url}/health", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came to that")


def test_fifty_come_up_in_groups_and_their_moments_are_true(tmp_path: Path) -> None:
    with fleet_of(tmp_path, 50, "0.05:0.4", "--half-closed", "--ttft", "0.02") as fleet:
        done = readiness(tmp_path / "out", "--replicas", "50", "--group-size", "10", "--validate", "3", *fleet.options)
        truth = fleet.truth()
        assert done.code == 0 and fleet.deleted() == [f"replica-{index}" for index in range(50)]
    assert truth["requests"] == [1 + 3 + 3] * 50, "looks ask no server to generate"
    for number in range(1, 6):
        group = done.group(number)
        for row in group["replicas"]:
            healthy = group["monotonic_zero_s"] + row["began_s"] + row["healthy_s"]
            ready = truth["ready"][str(row["index"])]
            assert healthy - row["healthy_within_s"] <= ready <= healthy
            assert row["answer_s"] >= row["healthy_s"] + 0.02
            assert row["validated_s"] > row["answer_s"] and len(row["validation"]) == 3
        if number > 1:
            earlier = max(row["began_s"] + row["validated_s"] for row in done.group(number - 1)["replicas"])
            assert min(row["began_s"] for row in group["replicas"]) > earlier
    assert {row["validated"] for row in done.rows} == {row["at_the_end"] for row in done.rows} == {"3 of 3"}
    assert len((done.folder / "table.csv").read_text().splitlines()) == 51
    assert (done.folder / "figure.svg").read_text().startswith("<svg")


def test_groups_need_not_wait_for_each_other(tmp_path: Path) -> None:
    with fleet_of(tmp_path, 2, "2") as fleet:
        done = readiness(
            tmp_path / "out", "--replicas", "2", "--group-size", "1", "--no-wait", "--pause", "0.2", *fleet.options
        )
    first, second = done.rows
    assert done.code == 0 and first["began_s"] + 0.15 <= second["began_s"] < first["began_s"] + first["answer_s"]


def test_one_that_is_wrong_spoils_no_other(tmp_path: Path) -> None:
    odd = {"0": "sampling=True", "1": "model=other", "2": "unhealthy=True", "3": "fault=500", "6": "api_key=secret"}
    odd["5"] = "fault=abort"
    faults = [word for index, what in odd.items() for word in ("--odd", f"{index}={what}")]
    late = ["--odd", "4=fault=close-early", "--odd", "4=fault_after=4"]
    with fleet_of(tmp_path, 9, "0.1", *faults, *late) as fleet:
        options = [word if word != "30" else "7" for word in fleet.options]
        done = readiness(tmp_path / "out", "--replicas", "9", "--served-model", "stub", *options)
    said = [row["failure"] for row in done.rows]
    expected = [
        "a wrong first answer: ",
        "does not serve 'stub': it serves other",
        "no answer within 7 s of its creation: /health says HTTP 503",
        "no answer within 7 s of its creation: it is healthy, and to the first question: HTTP 500",
        "at the end: question 1: the connection was closed by the replica",
        "ended with the finish reason 'abort'",
        "refuses the API key",
        None,
        None,
    ]
    for found, wanted in zip(said, expected, strict=True):
        assert found is None if wanted is None else wanted in found, (found, wanted)
    assert done.code == 4 and done.rows[0]["answer_s"] is None and done.rows[4]["answer_s"] is not None
    assert done.findings["headline"].startswith("2 of 9 replicas came up and stayed right")
    assert "secret" not in json.dumps(done.findings)


HOSTILE = {
    "exit 1 with a reason": ("echo 'Error: no quota' >&2; exit 1", "exited with code 1: Error: no quota"),
    "killed": ("kill -9 $$", "was killed by signal 9"),
    "prints garbage": ("echo created", "ended with no URL but with 'created'"),
    "prints nothing": ("true", "ended with no URL but with nothing"),
    "prints half a URL": ("echo http://", "ended with no URL"),
    "prints a secret in a URL": ("echo http://me:pass@host", "holds neither credentials nor a query"),
    "never listens": ("echo http://127.0.0.1:9", "no answer within 6 s of its creation: nobody listens on its port"),
    "an unknown host": ("echo http://no.such.host.invalid", "no answer within 6 s of its creation: "),
    "never ends": ("sleep 300", "no answer within 6 s of its creation: its create command has not ended"),
    "deaf to SIGTERM": ("trap '' TERM; sleep 300 & wait; wait", "its create command has not ended"),
    "another's URL": ("echo http://127.0.0.1:9", "is the URL of replica-6 too"),
    "floods": ("yes | head -c 3000000; sleep 0.1; echo", "ended with no URL but with 'y'"),
}


def test_create_commands_that_do_not_create(tmp_path: Path) -> None:
    cases = " ;; ".join(f"{index}) {command}" for index, (command, _) in enumerate(HOSTILE.values()))
    done = readiness(
        tmp_path / "out",
        *("--replicas", str(len(HOSTILE)), "--create-cmd", f"case {{index}} in {cases} ;; esac"),
        *("--delete-cmd", f"echo {{name}} >> {tmp_path}/gone", "--ready-timeout", "6"),
    )
    for row, (meaning, (_, wanted)) in zip(done.rows, HOSTILE.items(), strict=True):
        assert wanted in row["failure"], (meaning, row["failure"])
        assert row["answer_s"] is None
    assert done.code == 4 and len((tmp_path / "gone").read_text().split()) == len(HOSTILE)
    assert done.findings["headline"].endswith("replicas came up and stayed right: none gave a right answer.")


def test_a_command_may_be_the_server_itself_and_ends_with_the_study(tmp_path: Path) -> None:
    done = readiness(tmp_path / "out", "--replicas", "2", "--create-cmd", ITSELF, "--endpoint-template", AT_PORT)
    assert done.code == 0 and [row["created_s"] for row in done.rows] == [None, None]


def test_a_server_that_dies_between_is_missed_at_the_end(tmp_path: Path) -> None:
    def until(name: str) -> str:
        return f"until [ -e {tmp_path}/{name} ]; do sleep 0.05; done"

    first = f"({until('second')}) | {sys.executable} {STUB} --port {{port}}; touch {tmp_path}/over; exit 7"
    dies = f"if [ {{index}} = 0 ]; then {first}; fi; touch {tmp_path}/second; {until('over')}; {ITSELF}"
    options = ["--replicas", "2", "--group-size", "1", "--create-cmd", dies]
    done = readiness(tmp_path / "out", *options, "--endpoint-template", AT_PORT)
    first, second = done.rows
    assert done.code == 4 and second["failure"] is None
    assert (first["validated"], first["at_the_end"]) == ("2 of 2", "0 of 2")
    assert "exited with code 7" in first["failure"]


def test_who_answers_before_it_was_created_has_no_start_to_measure(tmp_path: Path) -> None:
    with fleet_of(tmp_path, 1, "0", "--half-closed") as fleet:
        url = (tmp_path / "url-0").read_text().strip()
        subprocess.run(["/bin/sh", "-c", fleet.options[1].replace("{index}", "0")], check=True, capture_output=True)
        wait_until(lambda: is_healthy(url))
        options = ["--create-cmd", f"touch {tmp_path}/made", "--delete-cmd", f"touch {tmp_path}/gone"]
        done = readiness(tmp_path / "out", *options, "--endpoint-template", url)
        shutil.rmtree(done.folder / "points/removed")  # as if it had been killed before that
        again = readiness(tmp_path / "out", *options, "--endpoint-template", url)
    assert done.code == again.code == 4
    assert "was healthy before the replica was created" in done.rows[0]["failure"]
    assert not (tmp_path / "made").exists() and not (tmp_path / "gone").exists(), "it is another's: it stays"


def test_what_cannot_be_taken_away_is_said(tmp_path: Path) -> None:
    with fleet_of(tmp_path, 2, "0") as fleet:
        delete = f"[ {{index}} = 0 ] || [ -e {tmp_path}/rights ] || {{ echo no rights >&2; exit 1; }}"
        options = [word if "gone" not in word else delete for word in fleet.options]
        done = readiness(tmp_path / "out", "--replicas", "2", *options)
        [sentence] = done.findings["not_removed"]
        assert sentence.startswith("replica-1 may still be there: the command '[ 1 = 0 ] || [ -e ")
        assert sentence.endswith("exited with code 1: no rights.")
        assert done.code == 3 and done.err == f"warning: {sentence}\n"
        groups = files_of(done.folder / "points" / "group-1")
        (tmp_path / "rights").touch()
        again = readiness(tmp_path / "out", "--replicas", "2", *options)
        assert (again.code, again.err, again.findings["not_removed"]) == (0, "", []), "the same command tries once more"
        assert files_of(done.folder / "points" / "group-1") == groups and fleet.truth()["creations"] == 2


def test_a_concluded_study_is_only_told_again(tmp_path: Path) -> None:
    with fleet_of(tmp_path, 2, "0") as fleet:
        first = readiness(tmp_path / "out", "--replicas", "2", *fleet.options)
        points = files_of(first.folder / "points")
        again = readiness(tmp_path / "out", "--replicas", "2", *fleet.options)
        assert fleet.truth()["creations"] == 2 and fleet.deleted() == ["replica-0", "replica-1"]
    assert first.code == again.code == 0 and files_of(first.folder / "points") == points


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    mark = {**os.environ, "READINESS_TEST": str(folder)}
    return subprocess.Popen(words_of(folder, *options), cwd=ROOT, stderr=subprocess.PIPE, text=True, env=mark)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_study_takes_away_what_it_has_made(tmp_path: Path, number: signal.Signals) -> None:
    folder, hangs = tmp_path / "out", f"touch {tmp_path}/made-{{index}}; sleep 300"
    process = start(
        folder,
        *("--replicas", "3", "--group-size", "2", "--create-cmd", hangs),
        *("--delete-cmd", f"echo {{name}} >> {tmp_path}/gone"),
    )
    wait_until(lambda: (tmp_path / "made-1").exists())
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and f"--output-dir {folder} goes on" in err
    assert not left_of(folder) and sorted((tmp_path / "gone").read_text().split()) == ["replica-0", "replica-1"]


def test_an_interrupt_between_groups_that_do_not_wait_finishes_none(tmp_path: Path) -> None:
    """What is taken away while a group is coming up has not failed: the group is measured anew."""
    folder, hangs = tmp_path / "out", f"touch {tmp_path}/made-{{index}}; sleep 300"
    delete = f"sleep 0.5; echo {{name}} >> {tmp_path}/gone"
    options = ["--replicas", "2", "--group-size", "1", "--no-wait", "--pause", "300"]
    process = start(folder, *options, "--create-cmd", hangs, "--delete-cmd", delete)
    wait_until(lambda: (tmp_path / "made-0").exists())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130 and (tmp_path / "gone").read_text() == "replica-0\n"
    assert not (folder / "points/group-1/point.json").exists()


def test_tasks_that_are_given_up_are_ended_before_anything_else_happens() -> None:
    ends: list[int] = []

    async def one(number: int) -> None:
        try:
            await asyncio.sleep(300)
        finally:
            await asyncio.sleep(0)
            ends.append(number)

    async def several() -> None:
        try:
            async with all_of() as tasks:
                for number in range(3):
                    tasks.append(asyncio.ensure_future(one(number)))
                    await asyncio.sleep(0)
                await asyncio.sleep(300)
        finally:
            ends.append(99)

    async def run() -> None:
        task = asyncio.ensure_future(several())
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert sorted(ends) == [0, 1, 2, 99] and ends[-1] == 99


def kill_after_the_first_group(folder: Path, *options: str) -> dict[str, tuple[int, str]]:
    """kill -9 as soon as the second group has begun; the first one's files."""
    process = start(folder, *options)
    wait_until(lambda: (folder / "points/group-2").exists())
    process.kill()
    process.communicate()
    assert not (folder / "points/group-2/point.json").exists()
    assert not left_of(folder)
    return files_of(folder / "points/group-1")


def test_killed_and_started_again_with_replicas_that_are_still_up(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet_of(tmp_path, 4, "1") as fleet:
        options = ["--replicas", "4", "--group-size", "2", *fleet.options]
        kept = kill_after_the_first_group(folder, *options)
        done = readiness(folder, *options)
        assert files_of(folder / "points/group-1") == kept
        truth = fleet.truth()
        assert sorted(set(fleet.deleted())) == [f"replica-{index}" for index in range(4)]
        assert fleet.deleted().count("replica-0") == 1, "what is up and was measured is only taken away at the end"
    assert done.code == 0 and {row["at_the_end"] for row in done.rows} == {"2 of 2"}
    assert truth["requests"][:2] == [1 + 2 + 1 + 2] * 2, "of the first group no start is measured again"
    assert min(row["began_s"] for row in done.rows[2:]) >= max(row["answer_s"] for row in done.rows[:2])


def test_killed_and_started_again_with_replicas_that_are_gone(tmp_path: Path) -> None:
    """They are made again for what follows, and keep the time that was measured first."""
    folder = tmp_path / "out"
    count = f"echo {{index}} >> {tmp_path}/made; {ITSELF}"
    options = ["--replicas", "2", "--group-size", "1", "--create-cmd", count, "--endpoint-template", AT_PORT]
    kept = kill_after_the_first_group(folder, *options)
    first = Done(0, "", folder).group(1)["replicas"][0]["answer_s"]
    done = readiness(folder, *options)
    assert files_of(folder / "points/group-1") == kept
    assert done.code == 0 and done.rows[0]["answer_s"] == first
    assert (tmp_path / "made").read_text().split().count("0") == 2


def test_servers_of_our_own_may_outnumber_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """--serve, a stub standing in for vLLM: one that dies in its start is told with the reason in its log."""
    from harness import cli

    def command(plan: Plan, port: int) -> list[str]:
        words = f"sleep 300 | {shlex.join([sys.executable, str(STUB), '--port', str(port)])}"
        return ["/bin/sh", "-c", f'if [ "$N" = 2 ]; then echo "ValueError: no memory"; exit 1; fi; {words}']

    def make_servers(plan: Plan) -> list[Server]:
        assert plan.share_cores
        return [Server(f"vllm-{index}", plan, {"N": str(index)}, []) for index in range(plan.replicas)]

    monkeypatch.setattr(serve, "command", command)
    monkeypatch.setattr(serve, "devices_in", lambda _: [])  # which would import vLLM
    monkeypatch.setattr(makers, "make_servers", make_servers)
    monkeypatch.setenv("READINESS_TEST", str(tmp_path / "out"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        words = ["readiness", "--serve", "--replicas", "3", "--quiet", "--output-dir", str(tmp_path / "out")]
        assert cli.call(words) == 4
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    done = Done(4, "", tmp_path / "out")
    assert [row["failure"] for row in done.rows[:2]] == [None, None]
    assert done.rows[2]["failure"].endswith("exited with code 1; vllm-2.log ends: ValueError: no memory")
    monkeypatch.delenv("READINESS_TEST")
    assert not [pid for pid in left_of(tmp_path / "out") if pid != os.getpid()]
