"""What replicas, devices and the client did in a test, second by second: timeline.parquet, and its summary.

The file is in long form, in order of time. `time_s` counts seconds from the first callback of the test, as `issued_s`
in samples.parquet does; `source` is who is spoken of; `metric` and `value` say what. What nobody knows has no rows.
Counters (+) count from the test's first callback; a counter that falls has been started anew, and goes on from there.

    source        metric               unit              what
    a replica     in_flight            queries           given to it and not answered yet       } what the SUT knows
    (its name in  held                 queries           that wait in the harness for its room  }
    result.json)  completed            queries +         right answers                          }
                  failures             queries +         attempts that failed on it             }
                  answer_tokens        tokens +          of its right answers                   }
                  serving              0 or 1            whether it is given work               }
                  running              requests          in its batch                           } what its engine says:
                  waiting              requests          for a place in it                      } vLLM here or on Ray,
                  kv_cache_usage       0 to 1            the fullest, of several engines        } a server's /metrics,
                  preemptions          requests +                                               } or echo
                  prompt_tokens        tokens +                                                 }
                  generation_tokens    tokens +          also of answers that are not complete  }
    gpu-N         utilisation          0 to 1            share of time that a kernel ran        } NVML or AMD SMI, of
                  memory_utilisation   0 to 1            share of time that memory was used     } the devices that the
                  memory_bytes         bytes             in use                                 } replicas were given,
                  clock_mhz            MHz               of the processors                      } or else of all
                  memory_clock_mhz     MHz                                                      }
                  power_w              W                                                        }
                  energy_j             J +               NVML only                              }
                  temperature_c        °C                                                       }
    client        cpu                  cores             used by the harness's process since the row before
                  loop_cpu             cores             of these, by the SUT's loop: 1 is all that it can have
                  loop_lag_s           s                 how late the loop's timers rang at most, since the row before
                  memory_bytes         bytes             resident
                  queued               queries           that no replica has been found for yet
                  in_flight            queries           at all replicas
                  issued, completed    queries +         by LoadGen; answered, failures among them
                  failures             queries +         for good
                  answer_tokens        tokens +          of right answers
    host          cpu                  0 to 1            busy share of all processors of this machine
                  memory_bytes         bytes             not available

The SUT's loop writes its own row of numbers once a second, at the first callback and at the end; everything else is
read by another process (sensors.py), at moments of its own. What it costs: scripts/bench_telemetry.py.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import nan
from pathlib import Path
from time import process_time, thread_time
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.config import RunConfig
from harness.results import Facts, is_local
from harness.sensors import INTERVAL, Asked, Heard, Sensors
from sut.backend import Gauged, Gauges, Scraped
from sut.dispatch import Replica
from sut.sut import SUT
from sut.work import Work

FILE = "timeline.parquet"

Numbers = npt.NDArray[np.float64]

Key = tuple[str, str]
"""(source, metric)."""

SUT_METRICS = ("in_flight", "held", "completed", "failures", "answer_tokens", "serving")
CLIENT_METRICS = (
    *("process_s", "loop_s", "loop_lag_s"),
    *("queued", "in_flight", "issued", "completed", "failures", "answer_tokens"),
)
ENGINE_COUNTERS = ("preemptions", "prompt_tokens", "generation_tokens")

SHORTEST = 0.25
"""Seconds below which a share of time is not worth telling."""

SUMMARISED = {
    "replica": ("running", "waiting", "kv_cache_usage"),
    "gpu": ("utilisation", "memory_bytes", "clock_mhz", "power_w", "temperature_c"),
    "client": ("cpu", "loop_cpu", "loop_lag_s", "memory_bytes"),
    "host": ("cpu", "memory_bytes"),
}
"""Metrics whose mean and maximum are in result.json."""


@dataclass(frozen=True)
class Line:
    """One metric of one source over a test: moments in seconds from its first callback, before which there may be one,
    and values."""

    times: Numbers
    values: Numbers

    def __len__(self) -> int:
        return len(self.times)


Lines = dict[Key, Line]


class Telemetry(AbstractContextManager["Telemetry"]):
    """One test's telemetry, from before its clock starts to its summary. What fails in it costs the test nothing."""

    def __init__(self, config: RunConfig, sut: SUT) -> None:
        self.on = not config.no_telemetry
        self._config = config
        self._sut = sut
        self._replicas: Sequence[Replica] = sut.replicas
        self._gauged = {r.name: r.backend for r in self._replicas if isinstance(r.backend, Gauged)}
        self._rows = array("d")
        self._lags = 0
        self._began = 0.0
        self._fault: str | None = None
        self._sensors: Sensors | None = None
        self._heard = Heard([])

    def __enter__(self) -> Telemetry:
        if self.on:
            self._sensors = Sensors(what_to_read(self._config, self._replicas))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sensors is not None:
            self._heard = self._sensors.close()
            self._sensors = None

    def await_ready(self) -> None:
        """Have the counters been read that the test begins with."""
        if self._sensors is not None:
            self._sensors.await_ready()

    def pulse(self, work: Work, now: float) -> None:
        """One row of what the SUT and the engines in this process know; on the loop, some microseconds a replica."""
        self._began = work.began
        rows, whole = self._rows, len(self._rows)
        if self._fault is None:
            try:
                rows.extend((now, *self._client_row(work)))
                for replica in self._replicas:
                    rows.extend(replica_row(replica))
                for backend in self._gauged.values():
                    rows.extend(backend.gauges())
            except Exception as error:  # noqa: BLE001 - what an engine's gauges raise must not end the test
                self._fault = f"the gauges raised {type(error).__name__}: {error}"
                del rows[whole:]

    def _client_row(self, work: Work) -> tuple[float, ...]:
        lags, self._lags = work.loop_lags[self._lags :], len(work.loop_lags)
        counts = self._sut.counts()
        lag = max(lags, default=nan) if self._rows else nan  # before the test nobody minds
        done = counts.issued, counts.completed, counts.failed, counts.tokens
        return process_time(), thread_time(), lag, self._sut.queued, counts.in_flight, *done

    def save(self, facts: Facts) -> dict[str, Any] | None:
        """Write timeline.parquet; the `telemetry` of result.json, None if it was switched off."""
        if not self.on:
            return None
        keys = [("client", metric) for metric in CLIENT_METRICS]
        keys += [(replica.name, metric) for replica in self._replicas for metric in SUT_METRICS]
        keys += [(name, metric) for name in self._gauged for metric in Gauges._fields]
        lines = read_rows(np.array(self._rows), keys, self._began)
        found, refused = read_heard(self._heard, self._began) if self._began else ({}, {})
        lines = finish(lines | found)
        absent = name_absent(lines, refused, self._replicas, self._fault, self._heard.complaint)
        try:
            rows = write(lines, self._config.output_dir / FILE)
        except OSError as error:
            rows = 0
            absent.append({"sources": [FILE], "why": f"it cannot be written: {error.strerror or error}"})
        return summarise(lines, absent, refused, rows, self._replicas, facts)


# -- before the test --------------------------------------------------------------------------------------------------


def what_to_read(config: RunConfig, replicas: Sequence[Replica]) -> Asked:
    """What the sensors are to read for these replicas."""
    servers = {
        replica.name: replica.backend.metrics_url for replica in replicas if isinstance(replica.backend, Scraped)
    }
    given = [str(name) for replica in replicas for name in replica.backend.facts.get("devices", ())]
    return Asked(
        servers, given or None, why_deviceless(config, given), ca_file=config.ca_file, insecure=config.insecure
    )


def why_deviceless(config: RunConfig, given: Sequence[str]) -> str | None:
    """Why replicas use none of this machine's devices; None: those that they were `given`, or any of them."""
    if config.backend == "ray":  # a device's number is its node's
        return "the engines are on the nodes of a Ray cluster"
    if given:
        return None
    if config.backend == "echo":
        return "the echo backend is a rehearsal and has no device"
    if config.serve or config.backend == "vllm":
        return "the engines run on processors"
    elsewhere = [url for url in config.endpoint if not is_local(url)]
    return f"{elsewhere[0]} is on another host" if elsewhere else None


def replica_row(replica: Replica) -> tuple[float, ...]:
    books = replica.books
    held = len(replica.waiting)
    return replica.in_flight, held, books.queries, books.failures, books.tokens, replica.serving


# -- after the test: numbers → lines ----------------------------------------------------------------------------------


def read_rows(numbers: Numbers, keys: Sequence[Key], began: float) -> Lines:
    """The loop's rows, each a moment and a value per key, nan for unknown."""
    table = numbers.reshape(-1, 1 + len(keys))
    times = table[:, 0] - began
    return {key: known(Line(times, table[:, column])) for column, key in enumerate(keys, 1)}


def read_heard(heard: Heard, began: float) -> tuple[Lines, dict[str, list[str]]]:
    """The sensors' readings; and per source each time that there was nothing, why."""
    points: dict[Key, tuple[array[float], array[float]]] = {}
    refused: dict[str, list[str]] = {}
    for source, moment, said in heard.lines:
        if isinstance(said, str):
            refused.setdefault(source, []).append(said)
            continue
        for metric, value in said.items():
            times, values = points.setdefault((source, metric), (array("d"), array("d")))
            times.append(moment - began)
            values.append(value)
    return {key: Line(np.array(times), np.array(values)) for key, (times, values) in points.items()}, refused


def known(line: Line) -> Line:
    finite = np.isfinite(line.values)
    return Line(line.times[finite], line.values[finite])


def finish(lines: Lines) -> Lines:
    """Counters from the test's first callback on, shares of time instead of seconds used; nothing before the test."""
    made: Lines = {}
    for (source, metric), line in lines.items():
        if (source, metric) == ("client", "process_s"):
            made[source, "cpu"] = share_of_time(line)
        elif (source, metric) == ("client", "loop_s"):
            made[source, "loop_cpu"] = share_of_time(line)
        elif metric in ENGINE_COUNTERS:
            made[source, metric] = since_start(line)
        elif metric == "energy_j":
            made[source, metric] = since_start(line, steady=True)
        else:
            made[source, metric] = line
    made = {key: Line(line.times[line.times >= 0], line.values[line.times >= 0]) for key, line in made.items()}
    return {key: line for key, line in made.items() if len(line)}


def share_of_time(line: Line) -> Line:
    """Of a counter of seconds, how much of each span it has taken; spans that are too short are left out."""
    spans, used = np.diff(line.times), np.diff(line.values)
    long = spans >= SHORTEST
    return Line(line.times[1:][long], used[long] / spans[long])


def since_start(line: Line, steady: bool = False) -> Line:
    """A counter from the test's beginning on; one that falls was set to zero. It stood there as in the last reading
    before, or, of one that grows all the time, between two readings."""
    steps = np.diff(line.values)
    steps = np.where(steps < 0, line.values[1:], steps)
    count = np.concatenate([[0.0], np.cumsum(steps)])
    before = max(0, int(np.searchsorted(line.times, 0.0, "right")) - 1)
    return Line(line.times, count - (np.interp(0.0, line.times, count) if steady else count[before]))


def write(lines: Lines, path: Path) -> int:
    """Write the lines as one table in order of time; how many rows it has."""
    import pyarrow as pa
    from pyarrow import parquet

    keys = list(lines)
    lengths = [len(lines[key]) for key in keys]
    times = np.concatenate([lines[key].times for key in keys]) if keys else np.zeros(0)
    values = np.concatenate([lines[key].values for key in keys]) if keys else np.zeros(0)
    order = np.argsort(times, kind="stable")
    which = np.repeat(np.arange(len(keys), dtype=np.int32), lengths)[order]
    names = [pa.array([key[part] for key in keys], pa.string()).take(pa.array(which)) for part in (0, 1)]
    columns = {"time_s": times[order], "source": names[0], "metric": names[1], "value": values[order]}
    parquet.write_table(pa.table(columns), path)
    return len(times)


# -- what it came to --------------------------------------------------------------------------------------------------


def name_absent(
    lines: Lines,
    refused: Mapping[str, Sequence[str]],
    replicas: Sequence[Replica],
    fault: str | None,
    complaint: str | None,
) -> list[dict[str, Any]]:
    """Who might have been heard and was not, each reason once: [{sources, why}]."""
    why: dict[str, str] = {}
    if fault is not None:
        why["client"] = fault
    for replica in replicas:
        if any((replica.name, gauge) in lines for gauge in Gauges._fields):
            continue
        silent = "its backend does not say what its engine does"
        if isinstance(replica.backend, Scraped):
            silent = complaint or "it said nothing"
        elif isinstance(replica.backend, Gauged):
            silent = "it said nothing"
        why[replica.name] = refused.get(replica.name, [silent])[-1]
    heard = {source for source, _ in lines}
    if not any(source.startswith("gpu-") for source in heard):
        why["gpu"] = (refused.get("gpu") or [complaint or "no device said anything"])[-1]
    if "host" not in heard:
        why["host"] = complaint or "it was not read before the test ended"
    grouped: dict[str, list[str]] = {}
    for source, reason in why.items():
        grouped.setdefault(reason, []).append(source)
    return [{"sources": sources, "why": reason} for reason, sources in grouped.items()]


def summarise(
    lines: Lines,
    absent: Sequence[Mapping[str, Any]],
    refused: Mapping[str, Sequence[str]],
    rows: int,
    replicas: Sequence[Replica],
    facts: Facts,
) -> dict[str, Any]:
    """What result.json holds of all this; energies in joules."""
    names = {replica.name for replica in replicas}
    series: dict[str, dict[str, Any]] = {}
    for (source, metric), line in lines.items():
        kind = "replica" if source in names else source.partition("-")[0]
        if metric in SUMMARISED.get(kind, ()):
            series.setdefault(source, {})[metric] = {"mean": float(line.values.mean()), "max": float(line.values.max())}
        elif source in names and metric in ENGINE_COUNTERS:
            series.setdefault(source, {})[metric] = float(line.values[-1])
    gone = {source for entry in absent for source in entry["sources"]}
    missed = [
        {"source": source, "count": len(reasons), "last": reasons[-1]}
        for source, reasons in refused.items()
        if source not in gone
    ]
    return {
        "file": FILE,
        "interval_s": INTERVAL,
        "rows": rows,
        "samples": len(lines.get(("client", "issued"), ())),
        "sources": sorted({source for source, _ in lines}),
        "absent": list(absent),
        "missed": missed,
        "series": series,
        **energy(lines, facts),
    }


def energy(lines: Lines, facts: Facts) -> dict[str, Any]:
    """Joules that the devices took from the test's first callback to its last answer, and per token of right answers;
    or else why that is not known. What is not a device (processors, memory, fans, the network) is not in it."""
    tokens = sum(replica.tokens for replica in facts.replicas)
    devices = sorted({source for source, _ in lines if source.startswith("gpu-")})
    taken = {device: joules(lines, device, facts.duration) for device in devices}
    untold = [device for device, amount in taken.items() if amount is None]
    total, why = None, None
    if not devices:
        why = "no device was heard"
    elif untold:
        why = f"{', '.join(untold)} did not say how much power it took over the whole test"
    else:
        total = sum(amount for amount in taken.values() if amount is not None)
    return {
        "energy_j": total,
        "energy_j_per_token": total / tokens if total is not None and tokens else None,
        "energy_of": devices if total is not None else [],
        "energy_why": why,
    }


def joules(lines: Lines, device: str, duration: float) -> float | None:
    """One device's energy over so many seconds: the difference of its counter, or else the integral of its power."""
    for metric in ("energy_j", "power_w"):
        line = lines.get((device, metric))
        if line is None or not duration or line.times[0] > 2 * INTERVAL or line.times[-1] < duration - 2 * INTERVAL:
            continue
        if metric == "energy_j":
            return float(np.interp(duration, line.times, line.values))
        grid = np.concatenate([[0.0], line.times[(line.times > 0) & (line.times < duration)], [duration]])
        watts = np.interp(grid, line.times, line.values)
        return float(((watts[1:] + watts[:-1]) / 2 * np.diff(grid)).sum())
    return None
