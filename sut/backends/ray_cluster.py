"""A Ray cluster that is up already: joined, its devices reserved, the replicas' actors placed on it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from sut.backends import Plan
from sut.backends.ray_host import Host
from sut.backends.vllm_engine import devices_each
from sut.errors import SetupError

START_LIMIT = 60.0
"""Seconds that the cluster gets to place the replicas."""

REACH_LIMIT = 5.0
"""Seconds that the cluster's address gets to take a connection: Ray itself would try for minutes."""


class Group(NamedTuple):
    """A placement group: what its bundles reserve, and how Ray lays them out."""

    bundles: list[dict[str, float]]
    strategy: str


def groups_of(replicas: int, size: int, device: str, largest: float) -> list[Group]:
    """How `replicas` of `size` devices each are laid out: packed per replica, spread between.

    A replica that fits a node is one bundle, and Ray spreads the bundles. One that fits none (`largest` devices) is a
    group by itself, whose devices vLLM's own Ray executor takes one by one.
    """
    if size <= largest:
        return [Group([{device: float(size)}] * replicas, "SPREAD")]
    return [Group([{device: 1.0}] * size, "PACK") for _ in range(replicas)]


class Cluster:
    """The connection to Ray that all replicas share, where they are placed, and their actors."""

    def __init__(self, plan: Plan, kind: str = "vllm") -> None:
        """Raises ConfigError for a parallelism that is no number."""
        self.actors: list[Any] = []
        self._plan = plan
        self._kind = kind
        self._size = devices_each(plan)
        self._groups: list[Any] = []
        self._members = set(range(plan.replicas))
        self._nodes: list[str | None] = []
        self._opening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect and have all actors placed, once for all replicas; where that fails, for all of them. Raises
        SetupError."""
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        await asyncio.to_thread(connect, self._plan.ray_address or "auto")
        await self._place_all()
        self._nodes = await asyncio.gather(*(node_of(actor) for actor in self.actors))

    async def _place_all(self) -> None:
        import ray
        from ray.exceptions import RayError
        from ray.util.placement_group import placement_group

        plan, size = self._plan, self._size
        device = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
        nodes = [node["Resources"].get(device, 0.0) for node in ray.nodes() if node["Alive"]]
        groups = groups_of(plan.replicas, size, device, max(nodes))
        if plan.replicas * size > sum(nodes):
            raise SetupError(
                f"the Ray cluster has {sum(nodes):g} {device}s, and {plan.replicas} replicas of {size} need "
                f"{plan.replicas * size}: ask for fewer replicas or add nodes."
            )
        self._groups = [placement_group(group.bundles, group.strategy) for group in groups]
        try:
            async with asyncio.timeout(START_LIMIT):
                await asyncio.gather(*(group.ready() for group in self._groups))
        except (TimeoutError, RayError) as error:
            free = ray.available_resources().get(device, 0.0)
            raise SetupError(
                f"the Ray cluster has not placed {plan.replicas} replicas of {size} {device}s within {START_LIMIT:g} s "
                f"({free:g} are free): is somebody else at work on it?"
            ) from error
        spread = len(groups[0].bundles) == plan.replicas and size <= max(nodes)
        for index in range(plan.replicas):
            group, bundle = (self._groups[0], index) if spread else (self._groups[index], 0)
            amount = groups[0].bundles[0][device] if spread else 0.0
            self.actors.append(self._create(index, group, bundle, device, amount, alone=spread))

    def _create(self, index: int, group: Any, bundle: int, device: str, amount: float, alone: bool) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        plan = replace(self._plan, codec=None, log_dir=None)
        if not alone:
            plan = replace(plan, engine_args={"distributed_executor_backend": "ray", **plan.engine_args})
        where = PlacementGroupSchedulingStrategy(group, bundle, placement_group_capture_child_tasks=True)
        cpus, gpus = (amount, 0.0) if device == "CPU" else (0.0, amount)
        actor = ray.remote(Host).options(
            num_cpus=cpus, num_gpus=gpus, scheduling_strategy=where, max_restarts=-1, max_concurrency=1000
        )
        return actor.remote(self._kind, index, plan)

    async def place(self, index: int) -> tuple[int, int]:
        """Which of how many replicas on its machine this one is; an actor that is lost counts where it was, until it
        is there again and asks."""
        own = await node_of(self.actors[index])
        if own is None:
            raise SetupError(f"the Ray actor {index} is not there.")
        self._nodes[index] = own
        return Counter(self._nodes[:index])[own], Counter(self._nodes)[own]

    async def leave(self, index: int) -> None:
        """A replica has stopped; the last one takes the actors and the reservation along."""
        self._members.discard(index)
        if not self._members:
            await asyncio.to_thread(self._close)

    def reachable(self) -> bool:
        """Whether there is a cluster that can be asked for something: Ray would wait for one that is gone."""
        import ray

        try:
            refuse_unreachable(ray.get_runtime_context().gcs_address)
        except (SetupError, RuntimeError, ray.exceptions.RayError):
            return False
        return True

    def _close(self) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        if not self.reachable():  # what it held went with it, or goes with this process
            return
        for actor in self.actors:
            ray.kill(actor)
        for group in self._groups:
            remove_placement_group(group)
        ray.shutdown()


async def node_of(actor: Any) -> str | None:
    """The machine that an actor is on, or None if it is on none."""
    from ray.exceptions import RayError

    with suppress(RayError):
        return str(await actor.node.remote())
    return None


def connect(address: str) -> None:
    """Join the cluster at an address. Raises SetupError for one that cannot be joined."""
    import ray

    refuse_unreachable(address)
    if ray.is_initialized():  # by a SUT of this process whose start failed: with it go its actors and their devices
        ray.shutdown()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if address == "local" else None,
            runtime_env={"py_modules": [str(Path(__file__).parent.parent)]},
        )
    except ConnectionError as error:
        raise SetupError(
            f"no Ray cluster is found at {address}: start one (ray start --head), or name it with --ray-address."
        ) from error
    except (RuntimeError, ValueError) as error:  # another version of Ray or Python, a token that is not accepted
        raise SetupError(f"the Ray cluster at {address} cannot be joined: {first_line(error)}") from error


def refuse_unreachable(address: str) -> None:
    """Raises SetupError for an address that nobody listens on: Ray would try for minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        raise SetupError(f"--ray-address {address} is none of auto, local and HOST:PORT of a cluster's head.")
    try:
        socket.create_connection((host, int(port)), REACH_LIMIT).close()
    except (OSError, OverflowError) as error:
        raise SetupError(f"nobody listens at --ray-address {address} ({error}): is the cluster's head up?") from error


def first_line(error: BaseException) -> str:
    """What a Ray error says, in its first line: the others tell of its processes, or are a traceback."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
