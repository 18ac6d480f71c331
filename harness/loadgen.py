"""The binding to MLCommons' LoadGen, and the only importer of mlperf_loadgen.

Traps that this file exists to hold (LoadGen 6.0.17): the first `FromConfig` of a process alone applies the built-in
mlperf.conf and the seeds, so it is called once and later tests change fields of the same settings; an exception that
leaves a callback is a segfault; first token and completion must be reported from one thread; LoadGen copies an answer
inside the call, so its buffer lives until the call returns.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import mlperf_loadgen as lg
import numpy as np

from harness.config import RunConfig
from harness.journal import Journal
from harness.recorder import Recorder
from harness.tally import Tally
from sut.errors import SetupError
from sut.query import NO_TOKENS, TOKEN_DTYPE, Outcome, Query, Tokens

Issue = Callable[[list[int], list[int]], None]

# The one TestSettings of this process, and what it was read for.
_settings: tuple[tuple[str, str], frozenset[str], lg.TestSettings] | None = None


# user.conf's key -> the field of TestSettings that it sets, for the tests after the first of a process.
_FIELDS = {
    "min_duration": "min_duration_ms",
    "max_duration": "max_duration_ms",
    "min_query_count": "min_query_count",
    "max_query_count": "max_query_count",
    "performance_sample_count_override": "performance_sample_count_override",
    "sample_concatenate_permutation": "sample_concatenate_permutation",
    "max_async_queries": "server_max_async_queries",
}
_RATE_FIELDS = {"Server": "server_target_qps", "Offline": "offline_expected_qps"}


def settings_for(config: RunConfig) -> lg.TestSettings:
    """LoadGen's settings for a test whose user.conf is already written.

    The first call of a process reads the built-in mlperf.conf and that user.conf; a later one changes counts, durations
    and the rate of the same settings. Raises SetupError for another model or scenario: that takes another process.
    """
    global _settings
    model, scenario = config.loadgen_model, config.loadgen_scenario
    user_conf = config.output_dir / "user.conf"
    if _settings is None:
        fresh = lg.TestSettings()
        code = fresh.FromConfig(str(user_conf), model, scenario, 1)
        if code != 0:
            raise SetupError(f"LoadGen could not read {user_conf} (code {code}).")
        fresh.scenario = getattr(lg.TestScenario, scenario)
        fresh.token_latency_scaling_factor = fresh.token_latency_scaling_factor if fresh.infer_token_latencies else 0
        _settings = ((model, scenario), frozenset(config.settings), fresh)
    known, keys, settings = _settings
    if known != (model, scenario):
        raise SetupError(
            f"LoadGen is set up for {known} in this process; {(model, scenario)} needs a process of its own."
        )
    if keys != frozenset(config.settings):
        raise SetupError("LoadGen would keep settings of an earlier test in this process: set the same keys in both.")
    for key, name in (_FIELDS | {"target_qps": _RATE_FIELDS.get(scenario, "")}).items():
        if name and key in config.settings:
            setattr(settings, name, config.settings[key])
    settings.mode = {"performance": lg.TestMode.PerformanceOnly, "accuracy": lg.TestMode.AccuracyOnly}[config.mode]
    return settings


class Bridge:
    """Hears of answers from the SUT, on its loop, and tells LoadGen and the recorder. With `first_tokens` False LoadGen
    hears of no first token: Offline has none, also where a closed loop streams to measure them.

    A failed query is answered too, without data and without tokens: LoadGen would wait for ever, and its own log then
    shows the error.

    A test can be brought to an end before its schedule's: LoadGen stops issuing when more than max_async_queries are
    outstanding, so answers are held back until it does (`hold`), and then all reported (`release`).
    """

    def __init__(
        self,
        recorder: Recorder,
        journal: Journal | None = None,
        first_tokens: bool = True,
        tally: Tally | None = None,
    ) -> None:
        self._recorder = recorder
        self._journal = journal
        self._first_tokens = first_tokens
        self._tally = tally
        self._closed = False
        self._held: list[tuple[Query, Outcome]] | None = None
        # LoadGen copies inside the call, so one cell serves all first tokens, and its address is looked up once.
        self._cell = np.zeros(1, TOKEN_DTYPE)
        self._cell_address = self._cell.ctypes.data

    def first(self, query: Query, ids: Tokens) -> None:
        if not self._first_tokens:
            return
        if self._tally is not None:
            self._tally.first(query)
        if len(ids) == 0:  # text: that there is a first token is known, which one is not
            lg.FirstTokenComplete([lg.QuerySampleResponse(query.id, 0, 0, 1)])
            return
        self._cell[0] = ids[0]
        lg.FirstTokenComplete([lg.QuerySampleResponse(query.id, self._cell_address, 4, 1)])

    def done(self, finished: Sequence[tuple[Query, Outcome]]) -> None:
        if self._held is not None:
            self._held += finished
            return
        if self._tally is not None:
            self._tally.done(finished)
        # One buffer for all answers of this tick: one address to look up, and it lives until the call returns.
        answers = [outcome.tokens if outcome.failure is None else NO_TOKENS for _, outcome in finished]
        data = np.concatenate(answers) if len(answers) > 1 else answers[0]
        address = data.__array_interface__["data"][0]  # four times as quick as .ctypes.data
        responses = []
        for (query, outcome), tokens in zip(finished, answers, strict=True):
            count = len(tokens)
            if query.stream and not outcome.first_token and self._first_tokens:
                # LoadGen crashes on logging the end of a streamed sample that never had a first token.
                lg.FirstTokenComplete([lg.QuerySampleResponse(query.id, 0, 0, 0)])
            # A text without ids is counted by its replica; where there are ids, LoadGen's log must agree with them.
            said = count if count or outcome.failure is not None else outcome.count
            responses.append(lg.QuerySampleResponse(query.id, address, 4 * count, said))
            address += 4 * count
        lg.QuerySamplesComplete(responses)
        if not self._closed:
            self._recorder.add(finished)
            if self._journal is not None:
                self._journal.add(finished)

    async def hold(self) -> None:
        """Report no answer until `release`; both run on the SUT's loop, as all else here."""
        self._held = []

    async def release(self) -> None:
        self._report_held()

    def _report_held(self) -> None:
        held, self._held = self._held, None
        if held:
            self.done(held)

    def close(self) -> None:
        """What LoadGen still issues after a test was stopped is answered, and recorded no more."""
        self._report_held()
        self._closed = True


_latest: Run | None = None


def settled() -> bool:
    """Whether no test is under way."""
    return _latest is None or _latest.done.is_set()


def settle() -> None:
    """Wait for the end of the latest test: one that was stopped still issues until its schedule is over, and a process
    has one LoadGen."""
    if _latest is not None:
        _latest.done.wait()


class Run(threading.Thread):
    """One StartTest, on a thread of its own so that Ctrl-C reaches the main thread; `join` it, with a timeout."""

    def __init__(
        self, issue: Issue, settings: lg.TestSettings, total: int, loaded: int, outdir: Path, audit: Path | None
    ) -> None:
        super().__init__(name="loadgen", daemon=True)
        self._issue = issue
        self._settings = settings
        self._total = total
        self._loaded = loaded
        self._outdir = outdir
        self._audit = audit
        self.done = threading.Event()
        self.issued = threading.Event()
        """LoadGen issues no more."""
        self.error: Exception | None = None

    def start(self) -> None:
        global _latest
        assert settled(), "LoadGen is still at an earlier test"
        _latest = self
        super().start()

    def run(self) -> None:
        _wake_on_time()
        try:
            self._test()
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits for this test must hear of its end
            self.error = error
        finally:
            self.done.set()

    def _test(self) -> None:
        logs = lg.LogSettings()
        logs.enable_trace = False
        logs.log_output.outdir = str(self._outdir)  # must exist: LoadGen aborts the process otherwise
        logs.log_output.copy_summary_to_stdout = False
        sut = lg.ConstructFastSUT(self._issue, self.issued.set)
        qsl = lg.ConstructQSL(self._total, self._loaded, _ignore, _ignore)
        # LoadGen looks for an audit.config in the working directory by itself; a name that cannot exist stops that.
        audit = str(self._audit) if self._audit else str(self._outdir / "no-audit.config")
        lg.StartTestWithLogSettings(sut, qsl, self._settings, logs, audit)
        lg.DestroyFastSUT(sut)
        lg.DestroyQSL(qsl)


def _wake_on_time() -> None:
    """Linux lets a sleeping thread's timer ring up to 50 µs late (prctl(2), PR_SET_TIMERSLACK): LoadGen's schedule
    sleeps on this thread or on one that inherits from it, and its clock has started by then."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)


def _ignore(indices: list[int]) -> None:
    """LoadGen's load and unload: all prompts stay in memory."""
