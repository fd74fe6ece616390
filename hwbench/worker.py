"""The child process that measures: cases in, results out, as JSON lines over a pipe of its own.

It is started by ``transports/local.py`` and never imported by the rest. It knows nothing of who
started it, and it imports torch and msgspec, and nvidia-ml-py where present, nothing else.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import IO, Any

import msgspec
import torch
from msgspec.structs import replace

import hwbench
from hwbench import environment, plugins, protocol, quantities
from hwbench.devices._base import Device, Step
from hwbench.devices._settings import restored, settings
from hwbench.errors import DeviceError, HwbenchError, SuiteError, UsageError
from hwbench.meters import _slips, allocator, latency
from hwbench.meters._base import Meter, left_out
from hwbench.meters._ceilings import measure_ceilings
from hwbench.meters._health import examine
from hwbench.meters._own_process import PARENT_DEATH_SIGNAL, OwnProcesses
from hwbench.meters._own_process import start as start_own
from hwbench.meters._profile import profile_case
from hwbench.quantities import Quantity
from hwbench.records import (
    ITEM_BYTES,
    Allocator,
    Measurement,
    Planned,
    Regime,
    Result,
    Status,
    without_gc,
)
from hwbench.workloads import _planning as planning
from hwbench.workloads._base import Subject, import_for_backward

_KEPT_SHARE = 0.25  # of the free memory may stay occupied by prepared cases between requests
_NO_COMPILER = (
    "Compiling needs a C++ compiler, and none is found; install g++ (on Debian: apt install g++), "
    "or name one in CXX."
)
_OWN_PROCESS_SECONDS = 20  # until a process of its own that has not answered is given up


class Worker:
    """Holds one device and the cases that are prepared on it."""

    def __init__(self, device: Device, own: OwnProcesses | None = None) -> None:
        self.device, self.own = device, own
        self.live: dict[str, Subject] = {}
        self.left_out: dict[str, str] = {}  # meters of other packages that fail, and why
        meters = []
        for name in plugins.names("meters"):
            try:
                meter = plugins.load("meters", name, Meter)()
            except UsageError as error:
                self.left_out[name] = str(error)
                continue
            if problem := _slips.undeclarable(meter.QUANTITIES):
                self.left_out[name] = f"The meter {name!r} cannot be used: {problem}."
                continue
            meters.append((name, meter))
        self.meters = sorted(meters, key=lambda named: named[1].ORDER)

    def answer(self, request: protocol.Request) -> protocol.Reply:
        """Carry out one request."""
        match request:
            case protocol.PlanRequest():
                return self.plan(request)
            case protocol.CeilingsRequest():
                measured = measure_ceilings(self.device, request.dtypes, full=request.full)
                caches = self.device.cache_bytes()
                return protocol.CeilingsReply(ceilings=measured, cache_bytes=caches)
            case protocol.HealthRequest(side=side):
                return protocol.HealthReply(found=examine(self.device, side))
            case protocol.ProfileRequest():
                return protocol.ProfileReply(found=self.profiled(request))
            case protocol.SoloRequest():
                return self.solo(request)
            case protocol.ChunkRequest():
                return self.chunk(request)
            case protocol.DescribeRequest() | protocol.LayersRequest() | protocol.ApplyRequest():
                return _described(request)
            case protocol.ForgetRequest():
                self.live.clear()
                self.device.release_memory()
                return protocol.ForgetReply(free_bytes=self.device.free_bytes())

    @without_gc()
    def plan(self, request: protocol.PlanRequest) -> protocol.PlanReply:
        """Resolve every case; all mistakes are gathered, not only the first."""
        planned, mistakes = [], []
        resolved: planning.Resolved = {}
        senses: dict[str, _slips.Plannable] = {}
        for case in request.cases:
            try:
                each = planning.planned(case, self.device, resolved)
                if case.workload not in senses:
                    senses[case.workload] = _slips.Plannable(planning.quantities(case.workload))
                if problem := senses[case.workload].problem(each):
                    raise SuiteError(f"{problem}.")
                planned.append(each)
            except HwbenchError as error:
                mistakes.append(f"{case.label} for {case.out_features}x{case.in_features}: {error}")
        return protocol.PlanReply(
            planned=planned,
            mistakes=list(dict.fromkeys(mistakes)),
            fingerprint={
                "device": self.device.info(),
                "host": environment.host_facts(),
                "torch": str(torch.__version__),
                "hwbench": hwbench.__version__,
            },
            settings=self.device.settings(),
            state={**self.device.state(), **self._meters_left_out()},
            quantities=self._foreign_quantities(planned),
            allocators=self.device.allocators(),
        )

    def _meters_left_out(self) -> dict[str, Any]:
        """The notes on meters that do not import; the other meters are read as usual."""
        return {"meters_left_out": self.left_out} if self.left_out else {}

    def _foreign_quantities(self, planned: Iterable[Planned]) -> list[Quantity]:
        """The quantities that these meters and workloads declare beyond hwbench's own."""
        workloads = dict.fromkeys(each.case.workload for each in planned)
        declared = [q for _, meter in self.meters for q in meter.QUANTITIES]
        declared += [q for name in workloads for q in planning.quantities(name)]
        return quantities.foreign(declared)

    def solo(self, request: protocol.SoloRequest) -> protocol.SoloReply:
        """Prepare one case and read error, score, memory and one call of it."""
        case = request.planned.case
        result = Result(
            case=case.id, replicate=request.replicate, seed=request.seed, status=Status.OK
        )
        result, held_bytes = self._tried(request, result)
        if case.id not in self.live:
            gc.collect()  # a score and its subject hold each other, and often a model
        self.device.release_memory()
        return protocol.SoloReply(
            result=result,
            held_bytes=held_bytes,
            free_bytes=self._free(),
            call_seconds=max(result.values(quantities.FIRST_CALL.name), default=0.0),
        )

    def _tried(self, request: protocol.SoloRequest, result: Result) -> tuple[Result, int]:
        """Read one case, and the bytes that it holds; it is kept only where it is yet to be timed.

        Nothing else refers to its subject when this returns.
        """
        planned, case = request.planned, request.planned.case
        before = settings()
        self.device.use_allocator(request.allocator)
        try:
            self._check_room(planned)
            subject = self._prepared(planned, request.seed)
            if self.own and request.allocator == Allocator.KEPT and not subject.compiled:
                subject.in_own_process = partial(_in_own_process, self.own, request)
            result = self._read(subject, result, request)
        except Exception as error:
            changed = restored(before)
            self.live.pop(case.id, None)
            if self._lost():
                raise
            return _failed(result, error, changed), 0
        if changed := restored(before):
            result = replace(result, status=Status.WRONG, reason=" ".join(changed), measurements=[])
        if result.status is Status.WRONG:
            self.live.pop(case.id, None)
            return result, 0
        held_bytes = subject.nbytes()
        others = sum(each.nbytes() for each in self.live.values())
        if subject.score is None and held_bytes + others < _KEPT_SHARE * self._free():
            self.live[case.id] = subject
        return result, held_bytes

    def alone(self, request: protocol.SoloRequest) -> protocol.Timed:
        """Read the quantities of one case that need a process without any other case."""
        subject = self._prepared(request.planned, request.seed)
        return protocol.Timed(measurements=allocator.compared(subject, self.device))

    def profiled(self, request: protocol.ProfileRequest) -> protocol.Profile:
        """Profile some calls of one case.

        Raises:
            UsageError: there is no room for it, or no compiler.
        """
        planned = request.planned
        try:
            self._check_room(planned)
            subject = self._prepared(planned, request.seed)
            return profile_case(self.device, subject, planned, request.calls, request.trace)
        except Exception as error:
            if (why := _missing(error)) is None:
                raise
            raise UsageError(f"{planned.case.label} cannot run here: {why}") from error

    def chunk(self, request: protocol.ChunkRequest) -> protocol.ChunkReply:
        """Time the cases of one chunk in rounds around the anchor."""
        cases = [*request.members, *([request.anchor] if request.anchor else [])]
        keep = {planned.case.id for planned in cases}
        self.live = {case: subject for case, subject in self.live.items() if case in keep}
        self.device.use_allocator(request.plan.allocator)
        self.device.release_memory()
        members = [
            latency.Member(
                id=planned.case.id,
                subject=self._prepared(planned, request.seed),
                regime=planned.case.regime or Regime.HOT,
            )
            for planned in cases
        ]
        anchor = members.pop() if request.anchor else None
        begun = time.monotonic()
        allowed = request.deadline_seconds
        deadline = float("inf") if allowed is None else begun + allowed
        rng = random.Random(f"{request.seed}/{request.replicate}/{sorted(keep)}")
        measured = latency.measure(members, anchor, self.device, request.plan, rng, deadline)
        everyone = [*members, *([anchor] if anchor else [])]
        return protocol.ChunkReply(
            timed={
                member.id: protocol.Timed(
                    measurements=measured[member.id], flags=sorted(member.flags)
                )
                for member in everyone
            },
            wall_seconds=time.monotonic() - begun,
            sampled_seconds=sum(sum(map(sum, m.blocks)) * m.calls for m in everyone),
            warm_seconds=sum(m.warm_seconds for m in everyone),
            lost=self._lost(),
        )

    def calls(self, planned: Planned, seed: int) -> tuple[Callable[[], Any] | None, Step]:
        """The untimed part of one call, if there is one, and the timed part that takes its state.

        They are for a clock that is not ours; the timed part ends when the device is done.
        """
        subject = self._prepared(planned, seed)

        def call(state: Any = None) -> None:
            with torch.set_grad_enabled(subject.grad):
                self.device.run(subject.step, [state])
            self.device.synchronize()

        return (None if subject.before is None else lambda: subject.states(1)[0]), call

    def _read(self, subject: Subject, result: Result, request: protocol.SoloRequest) -> Result:
        """Read every meter in order; correct before fast: a wrong case is read no further.

        After the deadline only what every case needs is read; the rest has a note in its place.
        """
        measurements: list[Measurement] = []
        begun, allowed = time.monotonic(), request.deadline_seconds
        for name, meter in self.meters:
            if result.replicate > 0 and meter.FIRST_REPLICATE_ONLY:
                continue
            if request.right and meter.ONCE_A_RUN:
                continue
            if meter.ON_REQUEST and name not in request.on_request:
                continue
            late = allowed is not None and time.monotonic() - begun >= allowed
            if late and not meter.NEEDED:
                read = [left_out(quantity) for quantity in meter.QUANTITIES]
            else:
                read = [*meter.read(subject, self.device)]
            error = max((v for m in read if m.quantity == quantities.NUMERICAL_ERROR.name
                         for v in m.values), default=0.0)  # fmt: skip
            if not error <= subject.tolerance and subject.numerical_error is not None:
                reason = (
                    f"Its relative error against float64 is {error:.3g}, above the tolerance "
                    f"{subject.tolerance:g}."
                )
                return replace(result, status=Status.WRONG, reason=reason)
            declared = [*meter.QUANTITIES, *subject.declared]
            so_far = replace(result, measurements=measurements)
            if problem := _slips.slip(request.planned, so_far, read, declared):
                who = (
                    f"workload {request.planned.case.workload}"
                    if name == "score"
                    else f"meter {name}"
                )
                reason = f"The {who} returned what no run can hold: {problem}."
                return replace(result, status=Status.WRONG, reason=reason)
            measurements = [*measurements, *read]
        return replace(result, measurements=measurements, flags=allocator.flags(measurements))

    def _prepared(self, planned: Planned, seed: int) -> Subject:
        case = planned.case
        if case.id not in self.live:
            workload, described = planning.described(case, planned.resolved)
            subject = workload.prepare(case, described, self.device, seed)
            subject.declared = workload.QUANTITIES
            if planned.added_seconds:
                _delay(subject, planned.added_seconds, self.device)
            self.device.describe(subject.step, case=case.id, cost=subject.cost)
            return subject
        return self.live[case.id]

    def _free(self) -> int:
        return self.device.free_bytes()

    def _lost(self) -> bool:
        """Whether the device answers no more: some errors of CUDA last as long as the process."""
        try:
            self.device.synchronize()
        except Exception:  # noqa: BLE001 (its message is of no more use)
            traceback.print_exc()
            return True
        return False

    def _check_room(self, planned: Planned) -> None:
        """Refuse a case that cannot fit with its float64 reference, before the system kills us."""
        case = planned.case
        weights = case.out_features * case.in_features
        tokens = (case.tokens or 0) * (case.out_features + case.in_features)
        stored = planned.cost.stored_bytes if planned.cost else 0
        needed = stored + 2 * 8 * weights + 3 * tokens * ITEM_BYTES[case.dtype]
        if needed > self._free():
            raise MemoryError(
                f"It needs about {needed:.3g} bytes with its float64 reference; "
                f"{self._free():.3g} are free."
            )


def _missing(error: Exception) -> str | None:
    """What this machine lacks for a case that raised an error; None where the case is to blame."""
    if _is_out_of_memory(error):
        return f"out of memory: {_sentence(error)}"
    return _NO_COMPILER if _is_no_compiler(error) else None


def _failed(result: Result, error: Exception, changed: list[str]) -> Result:
    """The result of a case that raised an error; ``changed`` says what was put back after it."""
    if _is_out_of_memory(error):
        return replace(result, status=Status.OUT_OF_MEMORY, reason=_sentence(error))
    if _is_no_compiler(error):
        return replace(result, status=Status.UNSUPPORTED, reason=_NO_COMPILER)
    traceback.print_exception(error)
    reason = " ".join([_sentence(error), *changed])
    return replace(result, status=Status.CRASHED, reason=reason)


def _in_own_process(own: OwnProcesses, request: protocol.SoloRequest) -> list[Measurement] | str:
    """Read the case of a request in a process of its own; returns why where that fails."""
    if (line := own.ask(protocol.encode(request))) is None:
        return "The process of its own that should read it died, or took too long."
    return msgspec.json.decode(line, type=protocol.Timed).measurements


def _read_alone(device: str, line: bytes) -> bytes:
    """Answer a request in a process of its own: with readings of its case, and of nothing else."""
    request = protocol.decode_request(line)
    assert isinstance(request, protocol.SoloRequest)
    return protocol.encode(Worker(open_device(device)).alone(request))


def _import_what_all_read() -> None:
    """Import what every reading needs, once for all processes that the server forks."""
    for name in plugins.names("meters"):
        with suppress(UsageError):  # the worker tells which it cannot import
            plugins.load("meters", name, Meter)
    import_for_backward()


def _described(
    request: protocol.DescribeRequest | protocol.LayersRequest | protocol.ApplyRequest,
) -> protocol.Reply:
    """Answer a request about formats or a model; only the latter imports readers of models."""
    if isinstance(request, protocol.DescribeRequest):
        return protocol.DescribeReply(formats=[planning.details(name) for name in request.names])
    from hwbench.workloads import _apply

    if isinstance(request, protocol.LayersRequest):
        return protocol.LayersReply(layers=_apply.layers(request.model))
    return protocol.ApplyReply(out=_apply.apply(request.plan, request.out))


def _delay(subject: Subject, seconds: float, device: Device) -> None:
    """Make every call longer by a known time: a slow-down that a self-test has to find."""
    step = subject.step

    def delayed(state: Any) -> Any:
        result = step(state)
        device.occupy(seconds)
        return result

    subject.step = delayed
    device.describe(delayed, added_seconds=seconds)


def _is_out_of_memory(error: Exception) -> bool:
    named = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    phrases = ("allocate memory", "out of memory", "ALLOC_FAILED")  # torch, CUDA, its libraries
    return named or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in phrases)
    )


def _is_no_compiler(error: Exception) -> bool:
    """Whether torch.compile or triton found no compiler to hand its code to."""
    named = any(word in str(error) for word in ("InvalidCxxCompiler", "Failed to find C compiler"))
    return named or type(error).__name__ == "InvalidCxxCompiler"


def _sentence(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def open_device(name: str) -> Device:
    """Open ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        DeviceError: this machine has no such device.
        UnknownNameError: there is no such kind.
    """
    kind, _, index = name.partition(":")
    device_class = plugins.load("devices", plugins.check("devices", kind), Device)
    present = device_class.count()
    if present == 0:
        raise DeviceError(device_class.missing())
    if index and not (index.isdigit() and int(index) < present):
        raise DeviceError(f"There is no device {name}; {kind} has {present}, numbered from 0.")
    return device_class(int(index or 0))


def answered(worker: Worker, line: bytes) -> bytes:
    """The reply to a request, as one line; an error is a reply too."""
    reply: protocol.Reply
    try:
        reply = worker.answer(protocol.decode_request(line))
    except HwbenchError as error:
        reply = protocol.Mistake(sentence=str(error))
    except Exception as error:  # noqa: BLE001 (the boundary: the runner receives the error)
        reply = protocol.Mistake(sentence=_sentence(error), detail=traceback.format_exc())
    return protocol.encode(reply)


def serve(
    device: Device, requests: Iterable[bytes], replies: IO[bytes], own: OwnProcesses | None = None
) -> None:
    """Answer requests until the other side closes its end."""
    worker = Worker(device, own)
    for line in requests:
        replies.write(answered(worker, line) + b"\n")
        replies.flush()


def main() -> None:
    """Start as a child: ``--read`` and ``--write`` are the descriptors of its own pipe."""
    parser = argparse.ArgumentParser(prog="hwbench.worker")
    parser.add_argument("--read", type=int, required=True)
    parser.add_argument("--write", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    torch.set_num_threads(arguments.threads)
    own = None
    if arguments.device == "cpu":  # before a device, or anything else, starts a thread
        alone = partial(_read_alone, arguments.device)
        closed = (arguments.read, arguments.write)
        own = start_own(alone, _OWN_PROCESS_SECONDS, closed, _import_what_all_read)
    with os.fdopen(arguments.read, "rb") as requests, os.fdopen(arguments.write, "wb") as replies:
        try:
            device = open_device(arguments.device)
        except HwbenchError as error:
            replies.write(protocol.encode(protocol.Mistake(sentence=str(error))) + b"\n")
            return
        hello = protocol.Hello(
            protocol=protocol.PROTOCOL, version=hwbench.__version__, pid=os.getpid()
        )
        replies.write(protocol.encode(hello) + b"\n")
        replies.flush()
        gc.collect()
        gc.freeze()  # modules that are loaded by now last as long as the process
        serve(device, requests, replies, own)


if __name__ == "__main__":
    main()
