"""vLLM engines in this process: one AsyncLLM per replica, each with devices of its own.

AsyncLLM runs its engine in a child process, which reads its devices from the environment it is spawned with. The
environment belongs to the whole process, so engines come up at the same time but are spawned one after the other.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, replace
from functools import partial
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from sut.backend import Backend, Gauges, Sink, drive
from sut.backends import Plan, refuse_unknown
from sut.errors import ConfigError, Rejected, ReplicaDied, SetupError
from sut.query import Query, Tokens

WARM_UP_PROMPTS = 4
WARM_UP_TOKENS = 8

SPAWN = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
"""A forked worker has no mark for the guard and holds its pipe open."""

_spawning = threading.Lock()

# What a line of a log gives as the reason of an end: an exception, bare or logged, or a complaint of argparse.
_REASON = re.compile(r"(?:\([^)]*\) )?(?:ERROR [^\]]*\] )?((?:[\w.]+(?:Error|Exception)|[\w.-]+: error): .+)")


class VllmEngine:
    """One replica: an AsyncLLM, its devices pinned through the platform's own variable (on a CPU: its cores)."""

    drains = False

    def __init__(self, name: str, plan: Plan, environment: Mapping[str, str], cores: Sequence[int]) -> None:
        self._name = name
        self._plan = plan
        self._environment = environment
        self._cores = cores
        self._engine: Any = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._log = plan.log_dir / f"{name}.log" if plan.log_dir else None
        self._log_from = self._log.stat().st_size if self._log and self._log.exists() else 0
        self._death: str | None = None
        self._tally = Tally()
        self.capacity = 512  # until the engine says how many sequences it runs
        self.facts: Mapping[str, Any] = {}

    async def start(self) -> None:
        try:
            self._engine = await asyncio.to_thread(self._build)
            await self._warm_up()
        except (ConfigError, SetupError):
            raise
        except Exception as error:
            raise SetupError(
                f"the vLLM engine {self._name} did not start: {first_line(error)}{self._tail()}"
            ) from error
        scheduler = self._engine.vllm_config.scheduler_config
        self.capacity = 2 * int(scheduler.max_num_seqs)
        self.facts = {
            "max_num_seqs": int(scheduler.max_num_seqs),
            "max_num_batched_tokens": int(scheduler.max_num_batched_tokens),
            "max_model_len": int(self._engine.model_config.max_model_len),
            "kv_cache_tokens": getattr(self._engine.vllm_config.cache_config, "kv_cache_size_tokens", None),
            "dtype": str(self._engine.model_config.dtype).removeprefix("torch."),
        }
        if devices := devices_in(self._environment):
            self.facts = {**self.facts, "devices": devices}

    async def prepare(self, prompts: Sequence[Tokens]) -> None:
        """Nothing: token ids are what the engine takes."""

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        loop = asyncio.get_running_loop()
        for query in queries:
            task = loop.create_task(drive(self._frames(query), query, sink))
            self._tasks[query.id] = task
            task.add_done_callback(partial(self._forget, query.id))

    def _forget(self, key: int, task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:  # and not that of a second attempt
            del self._tasks[key]

    def cancel(self, query: Query) -> None:
        task = self._tasks.pop(query.id, None)
        if task is not None:
            task.cancel()

    def trouble(self) -> str | None:
        if self._engine is not None and self._engine.errored:
            return self._why_dead()
        return None

    def gauges(self) -> Gauges:
        return self._tally.gauges()

    async def stop(self) -> None:
        """Shut the engine down without noise: its reader first, or it logs an error about its own end."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        for task in list(self._tasks.values()):
            task.cancel()
        if engine.output_handler is not None:
            engine.output_handler.cancel()
            await asyncio.gather(engine.output_handler, return_exceptions=True)
        await asyncio.to_thread(engine.shutdown)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _build(self) -> Any:
        """Create the engine; blocks until it is ready, some 10 s. Runs in a thread, several engines at once."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        with _spawn_window({**self._environment, **self._logging()}, self._cores, self._log):
            arguments = AsyncEngineArgs(**engine_arguments(self._plan))
            # vLLM sizes its batches by what the engine is for: on a CPU 256 sequences for batch work, 128 for serving.
            context = UsageContext.LLM_CLASS if self._plan.batch else UsageContext.OPENAI_API_SERVER
            loggers = [stat_logger(self._tally)] if self._plan.gauges else None
            engine = AsyncLLM.from_engine_args(arguments, usage_context=context, stat_loggers=loggers)
            if self._plan.gauges:
                listen(engine, self._tally, quiet=arguments.disable_log_stats)
            return engine

    def _logging(self) -> dict[str, str]:
        """vLLM logs to the engine's own file, which explains its death later; our process's vLLM does so too."""
        if self._log is None:
            return {}
        config = {
            "version": 1,
            "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
            "handlers": {
                "file": {"class": "logging.FileHandler", "filename": str(self._log.resolve()), "formatter": "plain"}
            },
            "loggers": {"vllm": {"handlers": ["file"], "level": "INFO", "propagate": False}},
        }
        path = self._log.with_suffix(".logging.json")
        path.write_text(json.dumps(config))
        return {"VLLM_LOGGING_CONFIG_PATH": str(path.resolve())}

    def _why_dead(self) -> str:
        """One reading of the log serves all queries that die with the engine."""
        if self._death is None:
            self._death = f"the vLLM engine died{self._tail()}"
        return self._death

    def _tail(self) -> str:
        """What the engine process has logged as the reason, as an appendix to a message."""
        if self._log is None or not self._log.exists():
            return ""
        with self._log.open("rb") as log:
            log.seek(self._log_from)
            text = reason(log.read().decode(errors="replace"))
        return f"; {self._log.name} ends: {text}" if text else ""

    def _frames(self, query: Query) -> AsyncIterator[tuple[Sequence[int], str | None]]:
        return self._generate(f"{query.id:x}", query.prompt.tolist(), query.stream, query.max_tokens)

    async def _generate(
        self, key: str, prompt: list[int], stream: bool, max_tokens: int
    ) -> AsyncIterator[tuple[Sequence[int], str | None]]:
        from vllm import TokensPrompt
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            parameters = self._parameters(stream, max_tokens)
            async for output in self._engine.generate(TokensPrompt(prompt_token_ids=prompt), parameters, key):
                answer = output.outputs[0]
                yield answer.token_ids, answer.finish_reason
        except EngineDeadError as error:
            raise ReplicaDied(self._why_dead()) from error
        except VLLMValidationError as error:
            raise Rejected(f"vLLM refused the prompt: {first_line(error)}") from error

    def _parameters(self, stream: bool, max_tokens: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        how = self._plan.generation
        return SamplingParams(
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            max_tokens=max_tokens,
            min_tokens=how.min_tokens,
            ignore_eos=how.ignore_eos,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
            # As few frames as the engine makes: the first token, then the rest.
            stream_interval=(self._plan.stream_interval or max(1, max_tokens)) if stream else None,
        )

    async def _warm_up(self) -> None:
        """Answer a few synthetic prompts, never samples of the dataset (MLCommons' rules forbid those)."""

        async def answer(number: int) -> None:
            prompt = [3 + (number + position) % 100 for position in range(16)]
            async for _ in self._generate(f"warm-up-{number}", prompt, False, WARM_UP_TOKENS):
                pass

        await asyncio.gather(*(answer(number) for number in range(WARM_UP_PROMPTS)))


class Tally:
    """What an engine's steps have said so far; a data-parallel replica has several engines. Counts are running sums."""

    def __init__(self) -> None:
        self._now: dict[int, tuple[int, int, float]] = {}
        self.preemptions = self.prompt_tokens = self.generation_tokens = 0

    def schedule(self, engine: int, running: int, waiting: int, kv_cache_usage: float) -> None:
        self._now[engine] = running, waiting, kv_cache_usage

    def count(self, outputs: Sequence[Any], preempted: Any) -> None:
        """One step's EngineCoreOutputs; `preempted` is the kind of an event that counts."""
        tokens = 0
        for output in outputs:  # with each token, so as little as can be
            tokens += len(output.new_token_ids)
            if output.prefill_stats is not None:
                self.prompt_tokens += output.prefill_stats.num_prompt_tokens
            if output.events is not None:
                self.preemptions += sum(event.type == preempted for event in output.events)
        self.generation_tokens += tokens

    def gauges(self) -> Gauges:
        """Of several engines, the fullest KV cache."""
        if not self._now:  # nobody has listened, or no step was made yet
            return Gauges()
        running, waiting, usage = zip(*self._now.values(), strict=True)
        counted = self.preemptions, self.prompt_tokens, self.generation_tokens
        return Gauges(sum(running), sum(waiting), max(usage), *counted)


def stat_logger(tally: Tally) -> type:
    """A logger in vLLM's sense that tells a tally of the scheduler; it is called on the loop, once per engine step.

    It stands in the place of vLLM's PrometheusStatLogger, which otherwise comes along with any logger: that one fills
    histograms for each token on our loop, for a /metrics page that an engine in this process does not have.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    class TallyLogger(PrometheusStatLogger):  # type: ignore[misc]  # vLLM is not there for mypy
        def __init__(self, *_: Any, **__: Any) -> None:
            pass  # the class above would register its metrics

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            if scheduler_stats is not None:
                waiting = scheduler_stats.num_waiting_reqs + getattr(scheduler_stats, "num_skipped_waiting_reqs", 0)
                running, usage = scheduler_stats.num_running_reqs, scheduler_stats.kv_cache_usage
                tally.schedule(engine_idx, running, waiting, usage)

        def log_engine_initialized(self) -> None:
            pass

        def record_sleep_state(self, *_: Any, **__: Any) -> None:
            pass

        def record_admission_rejection(self, *_: Any, **__: Any) -> None:
            pass

    return TallyLogger


def listen(engine: Any, tally: Tally, quiet: bool) -> None:
    """Have a new AsyncLLM's outputs counted by us instead of by vLLM: its own statistics of latencies cost our loop a
    quarter more per token, and nobody reads them where nothing is logged (`quiet`)."""
    from vllm.v1.engine import EngineCoreEventType

    processor, preempted = engine.output_processor, EngineCoreEventType.PREEMPTED
    process = processor.process_outputs
    if quiet:  # the engine's process goes on telling of its scheduler
        engine.log_stats = processor.log_stats = False

    def count_and_process(outputs: Sequence[Any], *rest: Any, **named: Any) -> Any:
        tally.count(outputs, preempted)
        return process(outputs, *rest, **named)

    processor.process_outputs = count_and_process


def make_replicas(plan: Plan) -> Sequence[Backend]:
    """One engine per replica, the devices of this machine divided among them. Raises ConfigError or SetupError."""
    take_arguments(plan)
    return [VllmEngine(f"vllm-{i}", plan, *place) for i, place in enumerate(divide_machine(plan))]


def make_one(name: str, plan: Plan, place: int, places: int) -> VllmEngine:
    """The engine that is number `place` of `places` on this machine, whose devices the environment names already; on a
    CPU its cores are divided here. Raises ConfigError or SetupError."""
    take_arguments(plan)
    if _on_cpu():
        return VllmEngine(name, plan, *_divide_cores(replace(plan, replicas=places))[place])
    return VllmEngine(name, plan, SPAWN | dict(plan.engine_env), [])


def take_arguments(plan: Plan) -> None:
    """Give this process the engines' environment, and refuse what vLLM does not know. Raises ConfigError, or SetupError
    without vLLM."""
    AsyncEngineArgs = require_vllm()
    for key, value in plan.engine_env.items():
        os.environ[key] = value
    refuse_unknown(plan.engine_args, [field.name for field in fields(AsyncEngineArgs)], "engine argument of vLLM")
    refuse_another_model(plan)


def refuse_another_model(plan: Plan) -> None:
    """Raises ConfigError for an argument by which an engine serves what the result does not say."""
    for name in ("model", "tokenizer"):
        if name in plan.engine_args:
            raise ConfigError(f"--engine-arg {name}=… would serve another model than the result says: use --model.")


def require_vllm() -> Any:
    """vLLM's AsyncEngineArgs. Raises SetupError, with what to do, where vLLM is not there or cannot be imported."""
    if find_spec("vllm") is None:
        raise SetupError(
            "vLLM is not installed here: run scripts/run.sh, or pip install '.[cpu]' (with a GPU: '.[gpu]')."
        )
    # Our own process's vLLM says what matters through exceptions; its console lines would tear the live view.
    logging.getLogger("vllm").setLevel(logging.ERROR)
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        raise SetupError(
            f"vLLM is installed but cannot be imported ({first_line(error)}); on a CPU, remove what does not fit its "
            "torch: pip uninstall torchvision torchaudio torchcodec."
        ) from error
    return AsyncEngineArgs


def divide_machine(plan: Plan) -> list[tuple[dict[str, str], list[int]]]:
    """Per replica the environment and the cores of its engine. Raises ConfigError if there are not enough of them."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return _divide_cores(plan)
    return _divide_devices(plan, current_platform.device_control_env_var, current_platform.device_count())


def engine_arguments(plan: Plan) -> dict[str, Any]:
    """What vLLM's engine is created with: MLPerf's needs, then what the person asked for."""
    arguments: dict[str, Any] = {
        "model": plan.model,
        "dtype": plan.dtype,
        # Reuse of a KV cache across queries is not allowed (inference_rules.adoc, l.895); vLLM has it on by default.
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "generation_config": "vllm",  # never sampling defaults out of the model's folder
    }
    if plan.max_model_len is not None:
        arguments["max_model_len"] = plan.max_model_len
    if _on_cpu():
        arguments["enforce_eager"] = True  # torch.compile adds 25 s to the start
    return arguments | dict(plan.engine_args)


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _divide_cores(plan: Plan) -> list[tuple[dict[str, str], list[int]]]:
    """Per replica its environment and cores: a CPU engine is pinned by the affinity that its process inherits.

    The worker shares the engine's process (half the start-up time, a third more tokens/s than a process of its own);
    without OMP_NUM_THREADS such engines take one thread per core each and spin against each other.
    """
    cores = sorted(os.sched_getaffinity(0))
    if plan.replicas > len(cores) and not plan.share_cores:
        raise ConfigError(
            f"{plan.replicas} replicas do not fit {len(cores)} cores: each engine needs a core of its own."
        )
    share = max(1, len(cores) // plan.replicas)
    # Beside a single engine the harness wants a core: LoadGen, the SUT's loop and the engine's front end run there.
    width = max(1, share - 1) if plan.replicas == 1 else share
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(width), "VLLM_CPU_KVCACHE_SPACE": "1"}
    for name in environment:
        if name in os.environ:
            environment[name] = os.environ[name]
    places = []
    for index in range(plan.replicas):
        # Engines that share cores go where there is room: pinned, some would have a core and some a part of one.
        pinned = 1 < plan.replicas <= len(cores)
        mine = cores[index * share : index * share + width] if pinned else []
        places.append((environment | dict(plan.engine_env), mine))
    return places


def _divide_devices(plan: Plan, variable: str, count: int) -> list[tuple[dict[str, str], list[int]]]:
    """Per replica the devices it may see, in the platform's own variable: tensor × pipeline parallel of them."""
    if variable in plan.engine_env:
        raise ConfigError(
            f"--engine-env {variable}=… would give all replicas the same devices: set it for the harness, which "
            "divides them."
        )
    size = devices_each(plan)
    visible = os.environ.get(variable)
    devices = [name.strip() for name in visible.split(",")] if visible else [str(device) for device in range(count)]
    if plan.replicas * size > len(devices):
        raise ConfigError(
            f"{plan.replicas} replicas of {size} devices need {plan.replicas * size}, and {len(devices)} are visible: "
            "ask for fewer replicas or less parallelism."
        )
    chunks = [devices[i * size : (i + 1) * size] for i in range(plan.replicas)]
    return [({variable: ",".join(chunk)} | SPAWN | dict(plan.engine_env), []) for chunk in chunks]


def devices_in(environment: Mapping[str, str]) -> list[str]:
    """The devices that a replica's environment shows it, as the platform names them; none on a CPU."""
    from vllm.platforms import current_platform

    names = environment.get(current_platform.device_control_env_var, "")
    return [name for name in names.split(",") if name]


def devices_each(plan: Plan) -> int:
    """How many devices one replica needs. Raises ConfigError."""
    return prod(_parallel(plan, f"{kind}_parallel_size") for kind in ("tensor", "pipeline", "data"))


def _parallel(plan: Plan, name: str) -> int:
    value = plan.engine_args.get(name, 1)
    if not str(value).isdigit() or int(value) < 1:
        raise ConfigError(f"{name}={value!r} is not a whole number of at least 1.")
    return int(value)


@contextmanager
def _spawn_window(environment: Mapping[str, str], cores: Sequence[int], log: Path | None) -> Iterator[None]:
    """Hold what one engine's process is to inherit until that process exists: environment, affinity, stdout and stderr.

    Closes, and lets the next engine in, as soon as a new child has appeared; the rest of its start overlaps. The first
    three belong to this whole process meanwhile: who must be heard on stderr writes to a duplicate of it.
    """
    _spawning.acquire()
    known = set(multiprocessing.active_children())
    everywhere = os.sched_getaffinity(0)
    undo = ExitStack()
    undo.callback(_spawning.release)
    try:
        undo.callback(_set_environment, {name: os.environ.get(name) for name in environment})
        _set_environment(environment)
        undo.callback(_redirect_output(log))
        if cores:
            os.sched_setaffinity(0, cores)  # of this thread alone, and of what it spawns
    except BaseException:
        undo.close()
        raise
    done = threading.Event()

    def close_early() -> None:
        while not done.wait(0.02) and not set(multiprocessing.active_children()) - known:
            pass
        undo.close()

    closer = threading.Thread(target=close_early, daemon=True)
    closer.start()
    try:
        yield
    finally:
        done.set()
        closer.join()
        if cores:
            _spread_threads(everywhere)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _redirect_output(log: Path | None) -> Callable[[], None]:
    """Point file descriptors 1 and 2 at the end of a file; the function returned points them back."""
    if log is None:
        return lambda: None
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)

    def restore() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in enumerate(saved, 1):
            os.dup2(copy, number)
            os.close(copy)

    return restore


def _spread_threads(cores: Iterable[int]) -> None:
    """Give all threads of this process these cores: those that vLLM has made were born with its engine's alone."""
    with _spawning:
        for thread in os.listdir("/proc/self/task"):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cores)


def reason(log: str) -> str:
    """The one line of a log that says why its process ended: its last exception, or else its last error, or line."""
    lines = [line for line in log.splitlines() if line.strip()]
    for index in range(len(lines) - 1, -1, -1):
        found = _REASON.match(lines[index])
        if found and "root cause" not in found[1]:  # which says that another line has it
            # What is indented below an exception belongs to its text (pydantic's does).
            below = index + 1
            while below < len(lines) and lines[below][0].isspace():
                below += 1
            return " ".join([found[1].strip(), *map(str.strip, lines[index + 1 : below])])[:300]
    errors = [line for line in lines if " ERROR " in line] or lines
    return errors[-1].strip()[-300:] if errors else ""


def first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
