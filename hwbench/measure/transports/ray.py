"""Workers on the machines of a Ray cluster.

An actor on the node holds the device for as long as the run lasts, by the resources that Ray
counts, and starts there the same child process that a local run starts, with the same protocol:
the driver sends one line and gets one line back. Ray's own wire is trusted (SECURITY.md).
"""

from __future__ import annotations

import logging
import os
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hwbench
from hwbench.errors import MissingPartError, UsageError, WorkerError, first_line
from hwbench.measure.transports._base import (
    Seat,
    SeatLostError,
    Worker,
    WorkerDiedError,
    WorkerTimedOutError,
)
from hwbench.measure.transports.local import START_SECONDS, LocalSeat, LocalWorker

_HOLD_SECONDS = 60.0  # to wait for a device that another job may hold
_GRACE_SECONDS = 60.0  # beyond a request's own limit, until its machine is given up
_ACCELERATOR = "accelerator_type:"  # how Ray names the resource of a kind of device
_MISTAKE = "mistake"
_ENDS: dict[str, type[WorkerError]] = {
    "timed_out": WorkerTimedOutError,
    "died": WorkerDiedError,
    "failed": WorkerError,
}
"""How a worker may end on its node, as the actor tells it, and the error that it is here."""


class Holder:
    """Lives on the node as an actor: holds the device, and one local worker at a time."""

    def __init__(self, device: str, threads: int) -> None:
        self._seat = LocalSeat(device, threads)
        self._worker: LocalWorker | None = None

    def ready(self) -> dict[str, Any]:
        """The facts of this node that the driver checks before it trusts the node."""
        return {"hwbench": hwbench.__version__, "host": socket.gethostname()}

    def start(self) -> tuple[str, str]:
        """Start a fresh worker; how it ended, or what is wrong, where that cannot be done."""
        self.stop()
        try:
            self._worker = self._seat.start()
        except UsageError as error:
            return _MISTAKE, str(error)
        except WorkerError as error:
            return _how(error), str(error)
        return "", ""

    def exchange(self, line: bytes, timeout_seconds: float) -> tuple[str, bytes]:
        """The worker's answer, or how it ended."""
        assert self._worker is not None
        try:
            return "answer", self._worker.exchange(line, timeout_seconds)
        except WorkerError as error:
            return _how(error), str(error).encode()

    def stop(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def _how(error: WorkerError) -> str:
    return next(how for how, kind in _ENDS.items() if isinstance(error, kind))


class RayWorker(Worker):
    """A worker on another machine, spoken to through the actor that holds its device."""

    def __init__(self, seat: RaySeat) -> None:
        self._seat = seat

    def exchange(self, line: bytes, timeout_seconds: float) -> bytes:
        how, answer = self._seat.call("exchange", timeout_seconds, line, timeout_seconds)
        if how in _ENDS:
            raise _ENDS[how](answer.decode())
        return bytes(answer)

    def close(self) -> None:
        try:
            self._seat.call("stop", 0.0)
        except SeatLostError:
            self._seat.close()  # the worker went with its machine


class RaySeat(Seat):
    """One device of one node, held by an actor from the first worker until it is closed."""

    def __init__(
        self, node: dict[str, Any], number: int, kind: str, resources: dict[str, float]
    ) -> None:
        self.kind = kind
        self.device = "cuda" if resources["num_gpus"] else "cpu"
        self.threads = max(1, int(resources["num_cpus"]))
        self.node = str(node["NodeID"])
        self.name = f"{kind or self.device} {number} of {node['NodeManagerHostname']}"
        self._held = resources
        self._actor: Any = None
        self._ended = ""  # why nothing more can be had of it

    def start(self) -> RayWorker:
        if self._actor is None:
            self._hold()
        how, sentence = self.call("start", START_SECONDS)
        if how in _ENDS:
            raise _ENDS[how](sentence)
        if how == _MISTAKE:
            raise UsageError(f"{self.name}: {sentence}")
        return RayWorker(self)

    def _hold(self) -> None:
        """Start the actor on the node, and wait until Ray gives it the device."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if self._ended:
            raise SeatLostError(f"{self.name} {self._ended}.")
        here = NodeAffinitySchedulingStrategy(node_id=self.node, soft=False)
        holder = ray.remote(Holder).options(scheduling_strategy=here, max_restarts=0, **self._held)
        self._actor = holder.remote(self.device, self.threads)
        versions = self.call("ready", _HOLD_SECONDS - _GRACE_SECONDS)
        if versions["hwbench"] != hwbench.__version__:
            raise UsageError(
                f"{self.name} has hwbench {versions['hwbench']}, this machine "
                f"{hwbench.__version__}; install the same version on both."
            )

    def call(self, method: str, timeout_seconds: float, *arguments: Any) -> Any:
        """Have the actor do something.

        Raises:
            SeatLostError: the actor or its node died, or does not answer.
            UsageError: hwbench cannot be imported there.
        """
        import ray
        from ray import exceptions

        if self._actor is None:
            raise SeatLostError(f"{self.name} {self._ended}.")
        try:
            reference = getattr(self._actor, method).remote(*arguments)
            return ray.get(reference, timeout=timeout_seconds + _GRACE_SECONDS)
        except exceptions.GetTimeoutError:
            doubt = "is held by another job, or " if method == "ready" else ""
            raise self._lost(f"{doubt}does not answer") from None
        except exceptions.RuntimeEnvSetupError as error:
            raise UsageError(f"{self.name} cannot start a worker: {first_line(error)}.") from error
        except exceptions.RayTaskError as error:
            lines = str(error.cause or error).strip().splitlines()
            cause = lines[-1] if lines else type(error.cause or error).__name__
            raise UsageError(f"{self.name} cannot run hwbench: {cause}") from error
        except exceptions.RayActorError as error:
            if "ModuleNotFoundError" in str(error):
                raise UsageError(f"hwbench is not installed on {self.name}.") from error
            raise self._lost("went away") from error
        except (exceptions.RayError, ConnectionError) as error:
            raise self._lost("cannot be reached") from error

    def _lost(self, how: str) -> SeatLostError:
        self._ended = self._ended or how
        self.close()
        return SeatLostError(f"{self.name} {self._ended}.")

    def close(self) -> None:
        import ray

        self._ended = self._ended or "was let go"
        actor, self._actor = self._actor, None
        if actor is not None and ray.is_initialized():
            ray.kill(actor)


class Cluster:
    """A running Ray cluster; only the address given is contacted."""

    def __init__(self, address: str) -> None:
        if not re.fullmatch(r"auto|(ray://)?[\w.-]+:\d{1,5}", address):
            raise UsageError(f"--cluster is auto or ray://HOST:PORT, not {address!r}.")
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # or Ray reports the cluster to its makers
        try:
            import ray
        except ImportError:
            raise MissingPartError(
                "--cluster needs Ray: pip install -c constraints.txt 'hwbench-torch[ray]'."
            ) from None
        try:
            # What Ray warns of, the error says. Ray puts the driver's current folder first on the
            # import path of its workers, so the driver stands in one that holds no modules.
            with warnings.catch_warnings(action="ignore"), _standing_in("/"):
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, ImportError) as error:
            if address == "auto" and isinstance(error, ConnectionError):
                why = "no cluster was started on this machine, and RAY_ADDRESS names none."
            else:
                why = next(iter(str(error).strip().splitlines()), "no answer")
            raise UsageError(f"There is no Ray cluster at {address}: {why}") from error

    def seats(self, kind: str, threads: int | None) -> list[Seat]:
        """The devices of all nodes: GPUs where there are any or ``kind`` says cuda, else CPUs.

        Raises:
            UsageError: ``kind`` has an index, or is a list.
        """
        if {":", ","} & {*kind}:
            raise UsageError(
                "With --cluster, --device is one kind without an index, such as cuda, and not "
                f"{kind!r}: Ray chooses the devices."
            )
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"]]
        gpus = any(node["Resources"].get("GPU") for node in nodes)
        on_gpus = kind == "cuda" or (kind == "auto" and gpus)
        return [seat for node in nodes for seat in _seats(node, threads, kind, on_gpus=on_gpus)]

    def close(self) -> None:
        """Let all devices go and leave the cluster."""
        import ray

        ray.shutdown()


@contextmanager
def _standing_in(folder: str) -> Iterator[None]:
    """Make a folder the current one for a while."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)
        yield
    finally:
        os.fchdir(here)
        os.close(here)


def _seats(
    node: dict[str, Any], threads: int | None, device: str, *, on_gpus: bool
) -> Iterator[RaySeat]:
    """One seat for each GPU, with its share of the cores; or one for the whole CPU."""
    resources = node["Resources"]
    kind = next(
        (k.removeprefix(_ACCELERATOR) for k in sorted(resources) if k.startswith(_ACCELERATOR)), ""
    )
    cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if on_gpus:
        share = float(max(1, cores // max(1, gpus)))
        for number in range(gpus):
            yield RaySeat(node, number, kind or "GPU", {"num_gpus": 1, "num_cpus": share})
    elif cores:
        seat = RaySeat(node, 0, kind or "CPU", {"num_gpus": 0, "num_cpus": float(cores)})
        seat.threads = min(threads or cores, cores)
        seat.device = device if device not in ("auto", "cuda") else "cpu"
        yield seat
