"""Lengths asked of a stub with each kind of refusal, and what is made of what was found; no LoadGen here."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.config import RunConfig, resolve
from harness.dataset import Tokenizer
from harness.demo import MODEL
from harness.progress import Progress
from harness.results import RunResult
from harness.studies import context
from harness.studies.context import Explored, Prompts, Question, Witness, kept_environment, study_config
from harness.studies.edge import CUT_SHORT, DIED, FAILED, FITS, LATE, MEMORY, REFUSED, Growth, Probe
from harness.studies.findings import as_json, as_text
from harness.studies.rig import NotUp, Rig
from harness.studies.study import open_study
from sut.errors import SetupError
from tests.stub_replica import Script, Stub

LIMIT = 1000
"""Tokens of the longest prompt that the stub answers."""

ASKED = Question(Growth(500, 2.0, 10_000), repeats=1, time_limit=None)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> Prompts:
    return Prompts(tokenizer)


def made(folder: Path, **options: Any) -> RunConfig:
    config = resolve(scenario="SingleStream", dataset="made up", output_dir=folder, **options)
    return study_config(config, output_tokens=8, repeats=1)


@contextmanager
def rig_of(folder: Path, tokenizer: Tokenizer, **options: Any) -> Iterator[Rig]:
    config = made(folder, **options)
    small = Prompts(tokenizer).samples(16, 1)
    with (
        open_study("context", config, {}) as study,
        Progress(quiet=True) as progress,
        Rig(study, config, small, tokenizer, progress, "engines/one") as rig,
    ):
        yield rig


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_prompts_are_ordinary_tokens_of_the_length_asked_and_all_different(
    tokenizer: Tokenizer, prompts: Prompts
) -> None:
    samples = prompts.samples(300, 5)
    assert samples.lengths.tolist() == [300] * 5
    assert {int(prompt[0]) for prompt in samples.prompts} == {tokenizer.bos}
    rest = np.concatenate([prompt[1:] for prompt in samples.prompts])
    assert not set(rest.tolist()) & {0, 1, 2}, "the special ones"
    assert rest.max() < tokenizer.size
    firsts = {prompt[1:20].tobytes() for prompt in [*samples.prompts, prompts.one(300, 0), prompts.one(301, 0)]}
    assert len(firsts) == 7, "no cache of a beginning helps"
    assert np.array_equal(prompts.one(300, 4), samples.prompt(3)), "the same again after a restart"
    assert prompts.one(1, 0).tolist() == [tokenizer.bos]


# -- one length -------------------------------------------------------------------------------------------------------

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."

REFUSALS: dict[str, tuple[dict[str, Any], str, int | None]] = {
    "within": ({"max_model_len": 5000}, FITS, None),
    "HTTP 400 beyond the context": ({"max_model_len": LIMIT + 8}, REFUSED, 400),
    "a proxy's HTTP 413": ({"fault": "413"}, REFUSED, 413),
    "HTTP 401 is about something else": ({"fault": "401"}, FAILED, 401),
    "HTTP 500 for want of memory": ({"fault": "500", "message": OOM}, MEMORY, 500),
    "HTTP 500 for no known reason": ({"fault": "500"}, FAILED, 500),
    "an error in the middle of an answer": ({"fault": "error-frame"}, FAILED, 500),
    "no answer": ({"fault": "stall-before"}, LATE, None),
    "an answer that stops": ({"fault": "stall-after"}, LATE, None),
    "a connection that breaks, the server lives": ({"fault": "reset-early"}, FAILED, None),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_each_refusal_is_told_apart(
    tmp_path: Path, tokenizer: Tokenizer, prompts: Prompts, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(context, "DEATH_PATIENCE", 0.2)
    script, edge, status = REFUSALS[case]
    with (
        Stub(Script(**({"max_model_len": 10**6, "fault_beyond": LIMIT} | script))) as stub,
        rig_of(tmp_path, tokenizer, endpoint=[stub.url]) as rig,
    ):
        fits = context.ask(rig, prompts.one(LIMIT, 0), 20.0)
        beyond = context.ask(rig, prompts.one(LIMIT + 1, 0), 0.5 if edge == LATE else 20.0)
    assert (fits.edge, fits.said, fits.total) == (FITS, None, LIMIT + 8)
    assert fits.ttft_s is not None and fits.latency_s is not None
    assert (beyond.edge, beyond.status, beyond.said is None) == (edge, status, edge == FITS)


def loops() -> int:
    return sum(thread.name == "sut-loop" for thread in threading.enumerate())


def test_a_server_that_goes_while_it_is_asked_has_died(tmp_path: Path, tokenizer: Tokenizer, prompts: Prompts) -> None:
    others = loops()
    with (
        Stub(Script(max_model_len=10**6, fault="stall-before", fault_beyond=LIMIT)) as stub,
        rig_of(tmp_path, tokenizer, endpoint=[stub.url]) as rig,
    ):
        assert context.ask(rig, prompts.one(LIMIT, 0), 20.0).fits
        threading.Timer(0.3, stub.kill).start()
        probe = context.ask(rig, prompts.one(2 * LIMIT, 0), 20.0)
        assert probe.edge == DIED
        assert probe.said is not None and "refused" in probe.said
        assert loops() == others, "nothing of a SUT that was taken down goes on"
        with pytest.raises(SetupError, match="not ready"):  # it was taken down, and cannot be had again
            context.ask(rig, prompts.one(LIMIT, 0), 20.0)
        stub.revive()
        assert context.ask(rig, prompts.one(LIMIT, 0), 20.0).fits, "unless it is back"


def asking(answers: list[Probe]) -> Callable[..., Probe]:
    return lambda *_: answers.pop(0)


def probe(length: int, edge: str = FITS, **facts: Any) -> Probe:
    return Probe(length, 8, edge, 60.0, **facts)


def test_what_may_be_chance_is_asked_twice_and_the_second_time_counts(
    tmp_path: Path, tokenizer: Tokenizer, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Explored("one", made(tmp_path))
    with rig_of(tmp_path, tokenizer, backend="echo") as rig:
        for length, first, second in [(10, DIED, FITS), (20, FAILED, FAILED), (30, FAILED, REFUSED)]:
            answers = [probe(length, first, said="oh"), probe(length, second)]
            monkeypatch.setattr(context, "ask", asking(answers))
            kept = context.fit(rig, found, length, ASKED, prompts)
            assert (kept.edge, kept.at_first, answers) == (second, "oh", [])
            assert context.fit(rig, found, length, ASKED, prompts) == kept, "from its file"
        for length, edge in enumerate((FITS, REFUSED, CUT_SHORT, LATE, MEMORY), 100):
            monkeypatch.setattr(context, "ask", asking([probe(length, edge)]))
            assert context.fit(rig, found, length, ASKED, prompts).edge == edge


def test_a_death_counts_where_nobody_can_be_asked_again(
    tmp_path: Path, tokenizer: Tokenizer, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [probe(10, DIED, said="gone")]

    def ask(*_: Any) -> Probe:
        if not first:
            raise NotUp("it is not ready.")
        return first.pop()

    monkeypatch.setattr(context, "ask", ask)
    with rig_of(tmp_path, tokenizer, backend="echo") as rig:
        kept = context.fit(rig, Explored("one", rig.config), 10, ASKED, prompts)
        assert (kept.edge, kept.at_first) == (DIED, None)
        assert kept.said == "gone; it could not be asked again: it is not ready."
        assert rig.study.saved("one-asks-10") is not None


def test_a_damaged_point_is_named(tmp_path: Path, tokenizer: Tokenizer, prompts: Prompts) -> None:
    with rig_of(tmp_path, tokenizer, backend="echo") as rig:
        rig.study.keep("one-asks-10", {"prompt_tokens": 10})
        with pytest.raises(SetupError, match="damaged"):
            context.fit(rig, Explored("one", rig.config), 10, ASKED, prompts)


def test_a_damaged_point_is_no_engine_that_could_not_be_had(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = made(tmp_path, backend="echo")
    with open_study("context", config, {}) as study, Progress(quiet=True) as progress:
        study.path("one-asks-500").mkdir()
        (study.path("one-asks-500") / "point.json").write_text("{")
        with pytest.raises(SetupError, match=r"point\.json cannot be read"):
            context.explore(study, "one", config, ASKED, tokenizer, progress)


def test_memory_is_witnessed(tmp_path: Path) -> None:
    (tmp_path / "old.log").write_text("torch.OutOfMemoryError: an earlier engine's\n")
    witness = Witness(tmp_path, [os.getpid()])
    before = witness.peak()
    hog = np.ones(50_000_000, np.uint8)
    after = witness.peak()
    assert before is not None and after is not None and hog.sum()
    assert after - before > 40_000_000
    assert not witness.no_memory("nothing of the kind"), "what was logged before counts for nothing"
    with (tmp_path / "old.log").open("a") as log:
        log.write("std::bad_alloc\n")
    assert witness.no_memory("") is True
    assert Witness(tmp_path, [2**22 + 1]).peak() is None, "of a process that is gone"
    assert Witness(tmp_path, []).peak() is None, "of an engine elsewhere"


def test_the_environment_of_one_configuration_is_not_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "a")
    with kept_environment():
        os.environ |= {"KEPT": "b", "NEW": "c"}
    assert (os.environ["KEPT"], "NEW" in os.environ) == ("a", False)


# -- what was found ---------------------------------------------------------------------------------------------------


def run(folder: Path, ttft: float, **more: Any) -> RunResult:
    figures = {"ttft_s": {"p50": ttft}, "tpot_s": {"p50": 0.01}, "latency_s": {"p50": ttft + 0.07}, "source": "loadgen"}
    plain = {"metrics": figures, "queries": 3, "client_limited": False, "valid": True}
    return RunResult(plain | more, folder)


@pytest.fixture
def remote(tmp_path: Path) -> RunConfig:
    return made(tmp_path, endpoint=["http://h:1"])


def found_of(remote: RunConfig, name: str, probes: list[Probe], **more: Any) -> Explored:
    points = {one.prompt_tokens: run(remote.output_dir, 0.1) for one in probes if one.fits}
    return Explored(name, remote, probes, points, **more)


@pytest.mark.parametrize(
    ("probes", "trouble", "headline"),
    [
        (
            [probe(1000), probe(1001, REFUSED, status=400, said="HTTP 400: too long")],
            None,
            "The longest prompt has 1,000 tokens, 1,008 with the 8 of its answer; one token more: refused by the "
            "server (HTTP 400).",
        ),
        (
            [probe(1000), probe(1500, DIED, said="gone")],
            None,
            "A prompt of 1,000 tokens is answered, one of 1,500 is not: the server died.",
        ),
        (
            [probe(1000)],
            None,
            "Every prompt up to 1,000 tokens was answered, and none longer was asked: not reached: all lengths asked "
            "were answered.",
        ),
        (
            [probe(1, REFUSED, status=400)],
            None,
            "No prompt was answered, not even one of 1 tokens: refused by the server (HTTP 400).",
        ),
        (
            [probe(1000)],
            "no",
            "Every prompt up to 1,000 tokens was answered, and none longer was asked: not to be had again.",
        ),
    ],
)
def test_the_headline_says_the_number_and_why(
    remote: RunConfig, probes: list[Probe], trouble: str | None, headline: str
) -> None:
    assert context.conclude([found_of(remote, "a", probes, trouble=trouble)]).headline == headline


def test_configurations_are_a_table_with_a_row_for_each(remote: RunConfig) -> None:
    memory = "larger than the available KV cache memory (0.01 GiB)"
    found = context.conclude(
        [
            found_of(remote, "long", [probe(4000, context=4008, kv_cache_tokens=40_080), probe(4001, CUT_SHORT)]),
            found_of(remote, "few-blocks", [], trouble=memory),
            found_of(remote, "odd", [probe(100, at_first="the engine died"), probe(101, LATE)]),
        ]
    )
    assert found.headline == "Longest prompt in tokens, beside 8 of its answer: long 4,000, few-blocks none, odd 100."
    assert found.summary is not None
    answers = {row["configuration"]: row for row in found.summary.rows}
    assert (answers["long"]["total_tokens"], answers["long"]["exact"], answers["long"]["edge"]) == (
        4008,
        True,
        CUT_SHORT,
    )
    assert (answers["few-blocks"]["edge"], answers["few-blocks"]["reason"]) == (
        MEMORY,
        "did not start for want of memory",
    )
    assert context.exit_code(found) == 3, "one has no answer"
    rows = {(row["configuration"], row["prompt_tokens"]): row for row in found.rows}
    assert rows["long", 4000]["prefill_tokens_per_s"] == 40_000
    assert rows["long", 4000]["total_tokens_per_s"] == pytest.approx(4008 / 0.17)
    assert rows["long", 4000]["kv_cache_share"] == 0.1
    assert (rows["odd", 101]["verdict"], answers["odd"]["reason"]) == (LATE, "no answer within 60 s")
    text = as_text(found)
    assert "few-blocks: the engine could not be had: larger than" in text
    assert "odd, 100 tokens: answered only when asked again; at first: the engine died" in text
    assert as_json(found)["summary"][0]["configuration"] == "long"


def test_a_run_that_fails_says_that_its_length_does_not_fit_after_all(
    tmp_path: Path, tokenizer: Tokenizer, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = {"count": 2, "by_kind": {"replica_died": 2}, "first": "sample 1: the engine died"}
    failed = run(tmp_path, 0.1, status="aborted", failures=failures)
    with rig_of(tmp_path, tokenizer, backend="echo") as rig:
        monkeypatch.setattr(rig, "point", lambda *_, **__: failed)
        found = Explored("a", rig.config)
        measured = context.measure(rig, found, probe(1000), ASKED, prompts)
        assert (measured.edge, measured.said) == (DIED, "sample 1: the engine died")
        untouched = context.measure(rig, found, probe(1000, context=900), ASKED, prompts)
        assert untouched.fits, "one that takes more than it says is not measured: a run would refuse the prompts"
    row = context.rows_of(replace(found, probes=[measured]))[0]
    assert (row["verdict"], row.get("ttft_s")) == (DIED, None)


def test_what_the_timeline_saw_is_in_the_rows(remote: RunConfig) -> None:
    series = {
        "gpu-0": {"memory_bytes": {"mean": 1.0, "max": 60e9}, "power_w": {"mean": 1.0, "max": 2.0}},
        "gpu-1": {"memory_bytes": {"mean": 1.0, "max": 61e9}},
        "remote-0": {"kv_cache_usage": {"mean": 0.1, "max": 0.25}, "prompt_tokens": 7.0},
        "host": {},
    }
    found = found_of(remote, "a", [probe(1000)])
    found.points[1000] = run(remote.output_dir, 0.1, telemetry={"series": series})
    (row,) = context.rows_of(found)
    assert (row["device_memory_bytes"], row["kv_cache_seen"]) == (121e9, 0.25)
    found.points[1000] = run(remote.output_dir, 0.1, telemetry=None)
    (row,) = context.rows_of(found)
    assert (row["device_memory_bytes"], row["kv_cache_seen"]) == (None, None)


@pytest.mark.parametrize("count", [1, 2])
def test_the_figure_marks_each_edge_with_its_reason(remote: RunConfig, count: int) -> None:
    probes = [probe(1000), probe(2000), probe(2001, REFUSED, status=400)]
    spec = context.conclude([found_of(remote, name, probes) for name in "ab"[:count]]).figure
    assert spec is not None
    first, second = spec["concat"]
    texts = [layer["data"]["values"][0]["text"] for layer in first["layer"] if layer["mark"].get("type") == "text"]
    assert texts == ["2,000, then: refused by the server (HTTP 400)"] * count
    assert sum(layer["mark"].get("strokeDash") is not None for layer in second["layer"]) == count


def test_without_a_figure_to_show_there_is_none(remote: RunConfig) -> None:
    assert context.conclude([found_of(remote, "a", [probe(10, REFUSED)])]).figure is None
