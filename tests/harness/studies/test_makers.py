"""Templates of commands and URLs: what is filled in, what is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from harness.studies.makers import Command, Commanded, Commands, fill, refuse_odd_commands, url_of
from sut.errors import ConfigError
from tests.harness.studies.killed import wait_for

VALUES = {"index": "3", "name": "replica-3", "port": "8003", "model": "a model; rm -rf /"}


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("deploy {name} --port {port}", "deploy replica-3 --port 8003"),
        ("serve {model}", "serve 'a model; rm -rf /'"),
        ("awk '{print $1}' ${HOME} {a,b} {}", "awk '{print $1}' ${HOME} {a,b} {}"),
        ("kubectl -o jsonpath='{.status.url}' {name}", "kubectl -o jsonpath='{.status.url}' replica-3"),
        ("{index}{index}", "33"),
    ],
    ids=["names", "quoted for the shell", "the shell's own braces", "kubectl's own braces", "twice"],
)
def test_only_our_placeholders_are_filled_in(template: str, filled: str) -> None:
    assert fill(template, VALUES) == filled


@pytest.mark.parametrize(
    ("output", "url"),
    [
        ("http://host:8000", "http://host:8000"),
        ("creating …\nready at https://host/v1\n\n", "https://host/v1"),
        ("http://first\nhttp://last", "http://last"),
        ("http://host\ndone", None),
        ("ftp://host", None),
        ("", None),
        ("   \n", None),
    ],
    ids=["alone", "at a line's end", "the last of two", "not last", "no HTTP", "nothing", "blanks"],
)
def test_the_output_ends_in_a_url(output: str, url: str | None) -> None:
    assert url_of(output.strip().splitlines()) == url


@pytest.mark.parametrize(
    ("commands", "replicas", "said"),
    [
        (Commands("deploy"), 2, "--create-cmd says the same for all 2 replicas"),
        (Commands("deploy {model}"), 2, "--create-cmd says the same"),
        (Commands("deploy {name}", None, "http://host"), 2, "--endpoint-template says the same"),
        (Commands("deploy {name}", "undeploy"), 2, "--delete-cmd says the same"),
        (Commands("deploy {name}", "kill {port}"), 1, "which nobody knows after a crash"),
        (Commands("  "), 1, "--create-cmd is empty"),
        (Commands("deploy", None, "host{index}:port"), 1, "is no URL"),
        (Commands("deploy", None, "http://me:secret@host{index}"), 1, "holds neither credentials"),
    ],
    ids=["create", "only the model", "endpoint", "delete", "a port", "empty", "no URL", "a password"],
)
def test_what_cannot_be_meant_is_refused(commands: Commands, replicas: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        refuse_odd_commands(commands, replicas)


@pytest.mark.parametrize(
    ("commands", "replicas"),
    [(Commands("deploy", "undeploy", "http://host"), 1), (Commands("d {port}", "u {name}", "http://h:{port}"), 9)],
    ids=["one needs no placeholder", "many differ"],
)
def test_what_can_be_meant_is_taken(commands: Commands, replicas: int) -> None:
    refuse_odd_commands(commands, replicas)


def test_a_replica_keeps_its_port_and_no_two_have_one(tmp_path: Path) -> None:
    maker = Commanded(Commands("x {port}", None, "http://h:{port}"), "m", tmp_path)
    places = [maker.place(index) for index in range(50)]
    assert len(set(places)) == 50 and places == [maker.place(index) for index in range(50)]


def test_a_command_that_is_stopped_takes_its_children_along(tmp_path: Path) -> None:
    async def run() -> None:
        command = Command(f"trap '' TERM; sleep 300 & echo $! > {tmp_path}/child; wait; wait", tmp_path / "log")
        while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
            await asyncio.sleep(0.01)
        assert command.ended is None and command.trouble() is None
        await command.stop(patience=0.05)
        await command.stop()  # twice does no harm

    asyncio.run(run())
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
