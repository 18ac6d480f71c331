"""What happens to a SUT on a Ray cluster of three nodes, told in a process of its own: Ray's threads and warnings are
not for pytest's.

    python -m tests.ray_story FOLDER

The actors hold the echo simulator, since what is shown is the way to them and back; tests/test_ray.py has real engines.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from ray.cluster_utils import Cluster as Nodes

from sut.backends import Generation, Plan
from sut.backends.ray_cluster import Cluster
from sut.backends.ray_engine import RayEngine
from sut.dispatch import Replica
from sut.health import Deadlines
from sut.query import TOKEN_DTYPE, Outcome, Query, Tokens
from sut.sut import SUT
from sut.work import Work

SMALL = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


class Ear:
    """Hears of answers: the first token of each and its end, by query."""

    def __init__(self) -> None:
        self.firsts: dict[int, list[int]] = {}
        self.ends: dict[int, list[tuple[str, list[int]]]] = {}

    def first(self, query: Query, ids: Tokens) -> None:
        self.firsts.setdefault(query.id, []).append(int(ids[0]))

    def done(self, finished: Sequence[tuple[Query, Outcome]]) -> None:
        for query, outcome in finished:
            how = outcome.failure.kind if outcome.failure else "right"
            self.ends.setdefault(query.id, []).append((how, outcome.tokens.tolist()))

    def close(self) -> None:
        pass


def prompt(index: int) -> Tokens:
    return np.arange(3 + index, 3 + index + 40, dtype=TOKEN_DTYPE)


def wait(until: Callable[[], bool], limit: float = 60.0) -> bool:
    deadline = time.monotonic() + limit
    while not until() and time.monotonic() < deadline:
        time.sleep(0.05)
    return until()


def chapter(sut: SUT, count: int, event: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Issue queries, let something happen once both replicas are at work, and tell how each of the queries ended and
    who served them."""
    ear = Ear()
    sut.begin(Work(prompt, True, 64, ear))
    sut.issue(list(range(count)), list(range(count)))
    wait(lambda: len(ear.ends) >= count // 10)
    event()
    wait(lambda: len(ear.ends) == count)
    work, books = sut.end()
    ends = [how for answers in ear.ends.values() for how, _ in answers]
    right = [
        ear.ends[key][0][1] == [*prompt(key)[:31].tolist(), 2] for key in ear.ends if ear.ends[key][0][0] == "right"
    ]
    return {
        "answered": len(ear.ends),
        "ends": len(ends),
        "kinds": {kind: ends.count(kind) for kind in set(ends)},
        "all_right_answers_are": all(right),
        "firsts_agree": all(ear.firsts[key][-1] == prompt(key)[0] for key in ear.firsts),
        "streaming_when_lost": sum(
            len(ear.firsts.get(key, [])) > 0 for key, e in ear.ends.items() if e[0][0] != "right"
        ),
        "retries": dict(work.retries),
        "queries": [own.queries for own in books],
        "ejected": [own.ejected_at is not None for own in books],
        "first_retry": work.first_retry,
    }


def kill_an_actor() -> None:
    """kill -9 of the process of one of our replicas' actors; there may be other clusters on this machine."""
    for process in psutil.Process().children(recursive=True):
        if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Host"):
            process.kill()
            return
    raise AssertionError("no actor is there")


def story() -> dict[str, Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    head = {"num_cpus": 0, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    nodes = Nodes(initialize_head=True, head_node_args=head)
    nodes.add_node(**SMALL)
    doomed = nodes.add_node(**SMALL)
    engine = {"slots": 8, "ttft": 0.1, "tpot": 0.01, "tokens": "32"}
    plan = Plan(2, "none", "auto", None, Generation(64), engine_args=engine, ray_address=nodes.address)
    cluster = Cluster(plan, kind="echo")
    replicas = [Replica(f"ray-{i}", RayEngine(i, cluster, plan)) for i in range(2)]
    sut = SUT(replicas, "pull", Deadlines(stall=60.0), resilient=True)
    sut.open()
    told = {"nodes": len({str(replica.backend.facts) for replica in replicas}), "quiet": chapter(sut, 100)}
    told["node lost"] = chapter(sut, 100, lambda: nodes.remove_node(doomed, allow_graceful=False))
    lost = [replica.ejected is not None for replica in replicas]
    nodes.add_node(**SMALL)
    told["back"] = wait(lambda: all(replica.ejected is None for replica in replicas))
    told["lost"] = lost
    told["after"] = chapter(sut, 100)
    told["actor killed"] = chapter(sut, 100, kill_an_actor)
    told["back again"] = wait(lambda: all(replica.ejected is None for replica in replicas))
    sut.close()
    nodes.shutdown()
    return told


if __name__ == "__main__":
    told = story()
    (Path(sys.argv[1]) / "told.json").write_text(json.dumps(told, indent=1))
    os._exit(0)
