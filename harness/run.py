"""The story of a run on one screen: open a SUT, run a test on it, come to a result.

with open_sut(config, progress) as system:
    result = run_test(config, system, progress)
"""

from __future__ import annotations

import gc
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import accuracy, compliance, environment, results
from harness.conf import conf_text
from harness.config import AUDIT_FILE, RunConfig, as_json, fit_to_dataset, shown_arguments
from harness.dataset import Samples, Tokenizer, load, read_json
from harness.folder import prepare_folder
from harness.journal import JOURNAL, Journal
from harness.progress import Progress
from harness.recorder import Recorder
from harness.results import Facts, RunResult
from harness.signals import Noted, name_of
from harness.tables import REFERENCE
from harness.tally import Tally
from harness.telemetry import Telemetry
from sut.backends import Plan, make_backends
from sut.dispatch import Books, Replica
from sut.errors import ConfigError, SetupError
from sut.guard import Guard
from sut.health import Deadlines
from sut.sut import SUT
from sut.work import Work

if TYPE_CHECKING:
    from harness.loadgen import Bridge, Run

POLL = 0.1
"""Seconds between two looks at a running test."""

GRACE = 1.0
"""Seconds that a stopped test gets to end by itself before it is left behind."""


@dataclass
class System:
    """A SUT that is up, and the samples it is asked about."""

    sut: SUT
    samples: Samples
    tokenizer: Tokenizer
    guard: Guard
    journal: Journal | None = None
    """The answers that an interrupted test has left (`--resume`)."""


def check(config: RunConfig) -> tuple[RunConfig, Samples, Tokenizer]:
    """Everything that can be found out before an engine starts; returns the configuration fitted to the dataset.

    Raises ConfigError or SetupError.
    """
    tokenizer = Tokenizer(find_model(config.model))
    samples = load_samples(config, tokenizer)
    if config.mode != "performance" and config.row.ungraded is None and not samples.referenced:
        raise SetupError(f"{config.dataset} has no references (column {REFERENCE}), so its answers cannot be scored.")
    return replace(config, settings=fit_to_dataset(config, len(samples))), samples, tokenizer


def load_samples(config: RunConfig, tokenizer: Tokenizer) -> Samples:
    """The samples of a run, each of which fits the model beside its answer. Raises SetupError."""
    room = context_length(config, find_model(config.model))
    longest = None if room is None else room - config.generation.max_tokens
    return load(config.dataset, tokenizer, limit=config.samples, suffix=config.row.prompt_suffix, longest=longest)


def find_model(name: str) -> Path:
    """The model's folder: a path, or a hub id through huggingface_hub's cache. Raises SetupError."""
    path = Path(name)
    if path.is_dir():
        read_json(path / "config.json")
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise SetupError(
            f"the model {name} is no folder here: name a folder with config.json and tokenizer.json, or a hub id."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "tokenizer*"]))
    except Exception as error:
        raise SetupError(
            f"the model {name} is neither a folder here nor to be had from the hub ({type(error).__name__})."
        ) from error


def context_length(config: RunConfig, model: Path) -> int | None:
    """Tokens that prompt and answer may have together, as far as it is known without the engine."""
    asked = config.engine_arg.get("max_model_len", config.max_model_len)
    known = asked if asked is not None else read_json(model / "config.json").get("max_position_embeddings")
    return int(known) if isinstance(known, int) else None


@contextmanager
def open_sut(config: RunConfig, samples: Samples, tokenizer: Tokenizer, progress: Progress) -> Iterator[System]:
    """Bring the replicas up, and take them down whatever happens; what is then still alive is killed.

    The output directory is made once the backend has agreed to its arguments; its engines' logs go there.
    """
    guard, journal = Guard(), None
    try:
        progress.say(f"Starting {config.replicas} {config.backend} replica{'s' * (config.replicas > 1)} …")
        sut = make_sut(config, tokenizer)
        journal = take_up(config, samples) if config.resume else None
        prepare_folder(config)
        open_all(sut, guard)
        for line in describe_dialects([replica.backend.facts for replica in sut.replicas]):
            progress.say(line)
        yield System(sut, samples, tokenizer, guard, journal)
        if sut.aborted is None:
            progress.say("Stopping the replicas …")
            with suppress(KeyboardInterrupt):  # the results are saved, and what still runs is killed
                sut.close()
    finally:
        if journal is not None:
            journal.close()
        guard.close()


def open_all(sut: SUT, guard: Guard) -> None:
    """Start the replicas; where one of them cannot, the others are stopped too, and no thread stays behind."""
    try:
        sut.open()
    except Exception:
        guard.kill()
        sut.close()
        raise


def describe_dialects(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """How remote replicas turned out to be spoken to, a line for each way."""
    ways = Counter(
        f"{facts['dialect']} ({facts['route']}; {facts['prompts']} in, {facts['answers']} out)"
        for facts in found
        if "dialect" in facts
    )
    return [f"{count} replica{'s' * (count > 1)} found: {way}" for way, count in ways.items()]


def make_sut(config: RunConfig, tokenizer: Tokenizer) -> SUT:
    """The SUT with its replicas, nothing started. Raises ConfigError or SetupError for what the backend refuses."""
    backends = make_backends(config.backend, plan_of(config, tokenizer))
    # In Offline all queries are there at once; a connection for each would be tens of thousands of them.
    bounded = config.backend == "remote" and not config.stream
    caps = [config.max_in_flight or (backend.capacity if bounded else None) for backend in backends]
    replicas = [Replica(f"{config.backend}-{i}", *pair) for i, pair in enumerate(zip(backends, caps, strict=True))]
    return SUT(replicas, config.dispatch, deadlines_of(config), resilient=config.failure_policy == "resilient")


def plan_of(config: RunConfig, tokenizer: Tokenizer) -> Plan:
    """What a configuration asks of its backend."""
    return Plan(
        replicas=config.replicas,
        model=config.model,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        generation=config.generation,
        stream_interval=config.stream_interval,
        batch=not config.stream,
        engine_args=config.engine_arg,
        engine_env=config.engine_env,
        log_dir=config.output_dir,
        endpoints=config.endpoint,
        serve=config.serve,
        served_model=config.served_model,
        dialect=config.dialect,
        offline_batch=config.offline_batch,
        max_in_flight=config.max_in_flight,
        ca_file=Path(config.ca_file) if config.ca_file else None,
        insecure=config.insecure,
        ready_timeout=config.ready_timeout,
        ray_address=config.ray_address,
        tokens_now=config.mode != "performance",
        gauges=not config.no_telemetry,
        codec=tokenizer,
    )


def deadlines_of(config: RunConfig) -> Deadlines:
    # A vLLM engine whose frames are as few as can be says nothing between an answer's first token and its end.
    frames = config.backend == "echo" or config.stream_interval is not None
    return Deadlines(config.first_token_timeout, config.stall_timeout, config.request_timeout, each=frames)


def take_up(config: RunConfig, samples: Samples) -> Journal:
    """The answers of an interrupted test, which no other process has in hand. Raises ConfigError or SetupError if there
    is nothing to go on with."""
    if not (config.output_dir / JOURNAL).exists():
        raise ConfigError(f"{config.output_dir} holds no {JOURNAL}: there is nothing to resume, run without --resume.")
    return open_journal(config, samples)


HARMLESS = {"max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "slots", "ttft", "tpot", "jitter"}
HARMLESS |= {"prefill", "slowdown", "fault", "fault_every", "fault_replica", "down"}
"""Engine arguments that change how quickly answers come, and not what they are."""


def journal_head(config: RunConfig, samples: Samples) -> dict[str, Any]:
    """What a test must have in common with the one that it goes on with."""
    return {
        "benchmark": config.benchmark,
        "scenario": config.scenario,
        "model": config.model,
        "backend": config.backend,
        "served_model": config.served_model,
        "dialect": config.dialect,
        "dataset_sha256": samples.sha256,
        "samples": len(samples),
        "generation": asdict(config.generation),
        "dtype": config.dtype,
        "engine_arguments": {k: v for k, v in sorted(shown_arguments(config.engine_arg).items()) if k not in HARMLESS},
    }


def run_test(
    config: RunConfig,
    system: System,
    progress: Progress,
    proven: Mapping[str, Any] | None = None,
    tally: Tally | None = None,
) -> RunResult:
    """Run one LoadGen test on a SUT that is up, and save its result; only waiting and scoring can be interrupted. A
    signal that comes later is raised once the result is saved.

    `proven` is the accuracy that another test on the same SUT has shown, for one that shows none by itself. With a
    `tally` a test is brought to an end as soon as it cannot be VALID any more.
    """
    # A stray audit.config is never picked up, but a submitter should know that it lies there.
    stray_audit = Path("audit.config").exists() and config.audit_config is None
    recorder = Recorder([replica.name for replica in system.sut.replicas])
    telemetry = Telemetry(config, system.sut)
    journal = system.journal
    if journal is None and config.mode == "accuracy":
        journal = open_journal(config, system.samples)
    known = journal.known if journal is not None else {}
    with Noted() as noted:
        with telemetry:
            facts = drive_loadgen(config, system, recorder, progress, journal, telemetry, noted, tally)
        scores: dict[str, Any] = dict(proven or {"passed": None, "why": why_unscored(config, facts)})
        answered = None
        if config.mode == "accuracy" and facts.status == "complete":
            progress.say("Scoring the answers …")
            try:
                with noted.raising():
                    scores, answered = score(config, system)
            except KeyboardInterrupt as reason:
                facts = replace(facts, status="interrupted", stopped_by=f"{name_of(reason)}, while scoring")
                scores = {"passed": None, "why": "scoring was interrupted"}
        recorder.save(config.output_dir / "samples.parquet")
        result = results.conclude(
            config,
            facts,
            recorder,
            total=len(system.samples),
            answered=answered,
            accuracy=scores,
            environment=describe_environment(system),
            stray_audit=stray_audit,
            texts=compare_texts(recorder.texts, system.tokenizer),
            compliance=verify_audit(config) if config.audit and facts.status == "complete" else None,
            resumed=len(known),
            telemetry=telemetry.save(facts),
        )
        result.save()
        if journal is not None:
            close_journal(journal, result, progress)
    if noted.interrupt is not None and facts.status != "interrupted":
        raise noted.interrupt  # it came too late for this test, and means those that may follow
    return result


def open_journal(config: RunConfig, samples: Samples) -> Journal:
    """Accuracy tests keep their answers as they come. Raises ConfigError or SetupError if that is not possible."""
    path = config.output_dir / JOURNAL
    try:
        return Journal(path, journal_head(config, samples))
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}.") from error


def close_journal(journal: Journal, result: RunResult, progress: Progress) -> None:
    """Keep the answers of a test that can be resumed; of one that is valid, LoadGen's log has them all."""
    journal.close()
    if journal.trouble is not None:
        progress.say(f"The answers could not all be kept: {journal.trouble}.")
    if result["valid"]:
        journal.remove()


def verify_audit(config: RunConfig) -> dict[str, Any]:
    """The verdict on a compliance run that has come to its end, whose words go into the run's folder."""
    assert config.audit is not None
    try:
        eos = compliance.eos_ids(find_model(config.model)) if config.audit.name == "TEST06" else frozenset()
        verdict = compliance.verify(config.audit.name, config.output_dir, config.scenario, eos)
    except SetupError as error:
        return {"test": config.audit.name, "passed": None, "checks": {}, "why": [str(error)]}
    if verdict.passed is not None:  # else a person's `compliance verify` writes it, with what decides it
        compliance.save(verdict, config.output_dir)
    return verdict.as_json()


def compare_texts(texts: Sequence[tuple[str, int]], tokenizer: Tokenizer) -> dict[str, float]:
    """How the replicas' counts of tokens stand to our tokenizer's, now that the clock has stopped.

    A count includes the end-of-sequence token, which a text does not have: a difference of one is none.
    """
    if not texts:
        return {}
    head = len(tokenizer.encode([""])[0])
    ours = [len(ids) - head for ids in tokenizer.encode([text for text, _ in texts])]
    differences = [said - own for own, (_, said) in zip(ours, texts, strict=True)]
    return {
        "answers": len(texts),
        "same_count": sum(difference in (0, 1) for difference in differences),
        "mean_difference": sum(differences) / len(differences),
    }


def describe_environment(system: System) -> dict[str, Any]:
    engines = {replica.name: dict(replica.backend.facts) for replica in system.sut.replicas}
    return environment.describe() | {"dataset_sha256": system.samples.sha256, "engines": engines}


def drive_loadgen(
    config: RunConfig,
    system: System,
    recorder: Recorder,
    progress: Progress,
    journal: Journal | None,
    telemetry: Telemetry,
    noted: Noted,
    tally: Tally | None = None,
) -> Facts:
    """One StartTest from beginning to end, or to the moment it is stopped."""
    from harness import loadgen

    sut, samples, folder = system.sut, system.samples, config.output_dir
    settings = loadgen.settings_for(config)
    override = config.settings.get("performance_sample_count_override", config.row.performance_samples)
    loaded = min(len(samples), int(override))
    with noted.raising():
        sut.prepare(samples.prompts)
    bridge = loadgen.Bridge(recorder, journal, config.loadgen_scenario != "Offline", tally)
    known = journal.known if journal is not None else {}
    gaps = array("d") if config.stream and config.stream_interval == 1 else None
    pulse, most = telemetry.pulse if telemetry.on else None, config.generation.max_tokens
    own = deadlines_of(config)
    sut.begin(Work(samples.prompt, config.stream, most, bridge, known, config.concurrency, gaps, pulse, own))
    audit = folder / AUDIT_FILE if config.audit_text is not None else None
    test = loadgen.Run(sut.issue, settings, len(samples), loaded, folder, audit)
    telemetry.await_ready()
    gc.collect()
    gc.freeze()  # the collector need not walk prompts and engines again and again while the clock runs
    cpu = time.process_time()
    test.start()
    if tally is not None:
        watch_hopes(test, sut, tally, bridge, config, progress, noted)
    status, stopped_by = watch(test, sut, config, len(samples), progress, noted)
    if status != "complete":
        test.done.wait(GRACE)
    gc.unfreeze()
    work, books = sut.end()
    return gather_facts([replica.name for replica in sut.replicas], work, books, status, stopped_by, cpu)


def watch(
    test: Run, sut: SUT, config: RunConfig, samples: int, progress: Progress, noted: Noted
) -> tuple[str, str | None]:
    """Wait for the end of a test, and have all answered where that is not LoadGen's; (status, what stopped it)."""
    title, expected = f"{config.scenario} {config.mode}", expected_queries(config, samples)
    if config.concurrency is not None:
        title += f", closed loop of {config.concurrency}"
    while not test.done.wait(POLL) and noted.interrupt is None:
        progress.update(title, sut.counts(), expected)
        if sut.aborted is not None:
            # Ctrl-C in a terminal reaches the engines too: an engine that dies of it is no reason of its own.
            time.sleep(0.3)
            break
    if noted.interrupt is not None and (sut.aborted is not None or not test.done.is_set()):
        name = name_of(noted.interrupt)
        sut.abandon(f"the test was interrupted by {name}.")
        return "interrupted", name
    if test.error is not None:
        sut.abandon(f"LoadGen ended with {type(test.error).__name__}: {test.error}.")
    return ("complete", None) if sut.aborted is None else ("aborted", sut.aborted)


def watch_hopes(
    test: Run, sut: SUT, tally: Tally, bridge: Bridge, config: RunConfig, progress: Progress, noted: Noted
) -> None:
    """Wait for the end of a test that may turn out to be hopeless, and then see to it that it ends: LoadGen, which
    cannot be told to stop, stops when too many queries are outstanding. Returns early for an interrupt."""
    title = f"{config.scenario} at {config.settings['target_qps']:g} queries/s"

    def over() -> bool:
        return test.done.wait(POLL) or noted.interrupt is not None

    why: str | None = None
    while not over() and sut.aborted is None and (why := tally.hopeless()) is None:
        progress.update(title, sut.counts(), None)
    if why is None:
        return
    sut.run(bridge.hold())
    while not (test.issued.is_set() or over()):  # a test that fails ends without a word of its issuing
        progress.update(f"{title}, hopeless", sut.counts(), None)
    sut.run(sut.cut(f"the test was hopeless: {why}"))
    sut.run(bridge.release())
    while not over():
        pass


def gather_facts(
    names: Sequence[str], work: Work, books: Sequence[Books], status: str, stopped_by: str | None, cpu: float
) -> Facts:
    """What the SUT's books say at the end of a test; `cpu` is the process's CPU time at its beginning."""
    duration = max(0.0, work.ended - work.began)

    def share(name: str, own: Books) -> results.Replica:
        return results.Replica(
            name=name,
            queries=own.queries,
            tokens=own.tokens,
            failures=own.failures,
            busy_share=own.busy / duration if duration else 0.0,
            tail_idle_s=max(0.0, work.ended - own.last_done) if own.last_done else duration,
            ejected_s=None if own.ejected_at is None else max(0.0, own.ejected_at - work.began),
        )

    return Facts(
        status=status,
        stopped_by=stopped_by,
        issued=work.issued,
        completed=work.completed,
        failures=dict(work.failures),
        first_failure=work.first_failure,
        failed_on=dict(work.failed_on),
        retries=dict(work.retries),
        late=work.late,
        first_retry=work.first_retry,
        duration=duration,
        replicas=[share(name, own) for name, own in zip(names, books, strict=True)],
        loop_cpu=work.cpu_ended - work.cpu_began,
        process_cpu=time.process_time() - cpu,
        loop_lags=work.loop_lags,
        respond_times=work.respond_times,
        started_at=time.time() - (time.perf_counter() - work.began) if work.began else None,
        gaps=work.gaps,
    )


def expected_queries(config: RunConfig, samples: int) -> int | None:
    """How many samples the test will issue, where that is known beforehand."""
    if config.mode == "accuracy":
        return samples
    if config.audit is not None:
        return config.audit.samples
    if config.scenario != "Offline":
        return None
    settings = config.settings
    duration, rate = settings.get("min_duration", 600_000) / 1000, settings.get("target_qps", 1.0)
    count = max(int(settings.get("min_query_count", 100)), int(1.1 * duration * rate))
    if not settings.get("sample_concatenate_permutation", 1):
        return count
    loaded = int(settings.get("performance_sample_count_override", config.row.performance_samples))
    return -(-count // loaded) * loaded  # whole passes over the loaded samples


def score(config: RunConfig, system: System) -> tuple[dict[str, Any], list[int]]:
    """Accuracy and the indices answered, from the log that LoadGen has just written; one in disorder scores nothing."""
    log = None
    try:
        log = accuracy.read_log(config.output_dir / results.ACCURACY)
        scope = accuracy.find_scope(config.row, config.dataset, config.samples, len(system.samples))
        verdict = accuracy.evaluate(log, system.samples, system.tokenizer, config.row, scope)
    except SetupError as error:
        unmet = accuracy.bounds(config.row.targets)
        return {"passed": None, "why": str(error), "targets": unmet}, log.indices if log else []
    accuracy.save(verdict, config.output_dir)
    return verdict.as_json(), log.indices


def why_unscored(config: RunConfig, facts: Facts) -> str:
    return "accuracy is scored in accuracy mode" if config.mode != "accuracy" else f"the test was {facts.status}"


def dry_run(config: RunConfig, samples: Samples, tokenizer: Tokenizer) -> dict[str, Any]:
    """What would be done: the resolved configuration, checked by the backend too, and the dataset; starts nothing."""
    make_sut(config, tokenizer)
    lengths = samples.lengths
    return {
        "config": as_json(config),
        "user_conf": conf_text(config.loadgen_model, config.loadgen_scenario, config.settings),
        "dataset": {
            "samples": len(samples),
            "sha256": samples.sha256,
            "prompt_tokens": {"min": int(lengths.min()), "mean": float(lengths.mean()), "max": int(lengths.max())},
        },
    }
