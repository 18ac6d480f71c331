"""`readiness` as a person meets it who asks for what cannot be: one sentence, exit 2."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cli import call

CREATE = ("--create-cmd", "true {index}")


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "say how replicas are made"),
        (("--serve", *CREATE), "say how replicas are made"),
        (("--replicas", "0", *CREATE), "0 is not in the range"),
        (("--replicas", "many", *CREATE), "not a valid integer"),
        (("--replicas", "2", "--create-cmd", "deploy"), "says the same for all 2 replicas"),
        (("--replicas", "2", *CREATE, "--endpoint-template", "http://host"), "says the same for all 2 replicas"),
        (("--serve", "--delete-cmd", "x"), "belong to --create-cmd"),
        (("--engine-arg", "max_num_seqs=4", *CREATE), "are for --serve"),
        (("--group-size", "0", *CREATE), "0 is not in the range"),
        (("--validate", "-1", *CREATE), "-1 is not in the range"),
        (("--pause", "nan", *CREATE), "nan seconds makes no sense"),
        (("--ready-timeout", "nan", *CREATE), "nan seconds makes no sense"),
        (("--ready-timeout", "0", *CREATE), "0.0 is not in the range"),
        (("--answer-tokens", "1", *CREATE), "1 is not in the range"),
        (("--endpoint", "http://host", *CREATE), "No such option"),
        (("--target-qps", "5", *CREATE), "No such option"),
        (("--dialect", "morse", *CREATE), "unknown dialect 'morse'"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    assert call(["readiness", "--output-dir", str(tmp_path / "out"), *options]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and said in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_question_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.json").write_text('{"format_version": 1, "study": "sweep"}')
    assert call(["readiness", "--output-dir", str(tmp_path), *CREATE]) == 2
    assert "holds a sweep and not a readiness" in capfd.readouterr().err


def test_a_plan_is_shown_and_nothing_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    create = f"touch {tmp_path}/made-{{index}}; git clone http://me:secret@host/x"
    words = ["readiness", "--replicas", "5", "--group-size", "2", "--create-cmd", create, "--dry-run", "--json"]
    assert call([*words, "--output-dir", str(tmp_path / "out")]) == 0
    out = capfd.readouterr().out
    plan = json.loads(out)
    assert plan["points"] == ["group-1", "group-2", "group-3", "final"]
    assert plan["question"]["commands"]["create"].endswith("http://host/x") and "secret" not in out
    assert not list(tmp_path.iterdir())
