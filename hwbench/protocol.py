"""What a runner and a worker say to each other: one JSON line each way.

It is the same over any transport, and it has a number, because the worker may live in another
interpreter's environment.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hwbench.quantities import Quantity
from hwbench.records import (
    Allocator,
    Case,
    Knob,
    Measurement,
    Plan,
    Planned,
    Record,
    Result,
    without_gc,
)

PROTOCOL = 1
BUDGET_ENDED = "The time budget ended before it was read."


class Hello(Record, tag="hello", tag_field="say"):
    """The worker's first line: it is up, and which protocol it speaks."""

    protocol: int
    version: str
    pid: int


class PlanRequest(Record, tag="plan", tag_field="say"):
    """Resolve knobs, densities, support and device facts of all cases."""

    cases: list[Case]


class PlanReply(Record, tag="planned", tag_field="say"):
    """The cases as planned, or the mistakes in them; and what the worker knows of the machine."""

    planned: list[Planned] = []
    mistakes: list[str] = []
    fingerprint: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    state: dict[str, Any] = {}
    quantities: list[Quantity] = []  # what meters and workloads of other packages declare
    allocators: dict[str, str] = {}  # of the worker, by name: "", or why it cannot be had

    def machine(self, threads: int) -> dict[str, Any]:
        """The facts of the machine as a run with this number of threads stores them."""
        return {**self.fingerprint, "threads": threads}


class CeilingsRequest(Record, tag="ceilings", tag_field="say"):
    """Measure the machine's ceilings: the matrix rate of these dtypes, copy, and launch."""

    dtypes: list[str]
    full: bool = False  # sweeps of sizes and working sets, memory levels, other precisions


class Product(Record):
    """The rate of one matrix product, and its sides."""

    flops_per_second: float
    shape: list[int]


class BestProduct(Record):
    """The library that reaches most in one way to multiply, and what each of them reaches."""

    flops_per_second: float
    shape: list[int]
    library: str = ""
    libraries: dict[str, Product] = {}
    sm_clock_hertz: float | None = None  # while it computed, on a GPU
    sweep: list[Product] = []  # of the full form: its rate at every side


class Moved(Record):
    """The rate at which one working set was moved."""

    working_set_bytes: int
    bytes_per_second: float


class Bandwidth(Record):
    """The rate of the largest working set."""

    bytes_per_second: float
    working_set_bytes: int
    sweep: list[Moved] = []  # of the full form: every working set


class MemoryLevel(Record):
    """A plateau of the copy's sweep: the least and the most bytes that move at one rate."""

    name: str
    bytes_per_second: float
    working_set_bytes: list[int]


class Launch(Record):
    """Seconds of the smallest call: on the device, on the host, and replayed from a graph.

    ``graph_kernel_seconds`` is the share of one call in a graph of many; ``graph`` says why there
    is none.
    """

    seconds: float
    host_seconds: float | None = None
    graph_seconds: float | None = None
    graph_kernel_seconds: float | None = None
    graph: str | None = None


class Ceilings(Record, kw_only=True):
    """The best rates seen; ``triad`` and ``levels`` belong to the full form.

    ``matmul`` has an entry for each dtype, and in full form for each other way in which the device
    may compute it; ``disturbed`` is the share of the measuring in which something disturbed it.
    """

    matmul: dict[str, BestProduct]
    copy: Bandwidth
    triad: Bandwidth | None = None
    levels: list[MemoryLevel] = []
    launch: Launch
    disturbed: float


class CeilingsReply(Record, tag="measured", tag_field="say"):
    """The ceilings that were measured now; their memory levels are for the runner to find.

    ``cache_bytes`` are the data caches of the device, by name.
    """

    ceilings: Ceilings
    cache_bytes: dict[str, int] = {}


class HealthRequest(Record, tag="health", tag_field="say"):
    """Whether the device can be trusted now: a second of equal work, and 2:4 tried.

    ``side`` is that of a float32 product whose rate is asked for; 0 asks for none.
    """

    side: int = 0


class Health(Record, kw_only=True):
    """The facts of a device that only a process on it can read.

    ``disturbances`` are words; ``spread`` is the 90th percentile of equal samples over the 10th,
    less one; ``flops_per_second`` the rate of the product that was asked for; ``two_four`` has a
    reason for each kernel, "" where it ran; ``retired_package`` says what to do about it, "" where
    it is not installed.
    """

    disturbances: list[str]
    seconds: float
    spread: float
    flops_per_second: float | None = None
    timer_seconds: float
    resolution_seconds: float
    two_four: dict[str, str]
    retired_package: str = ""


class HealthReply(Record, tag="healthy", tag_field="say"):
    """The result of a second of equal work."""

    found: Health


class ProfileRequest(Record, tag="profile", tag_field="say"):
    """Profile some calls of one case; a Chrome trace goes to ``trace`` unless that is empty."""

    planned: Planned
    seed: int
    calls: int
    trace: str


class Ran(Record):
    """A kernel of a GPU, or an operator of a CPU without what it calls; seconds of all calls."""

    name: str
    calls: int
    seconds: float
    share: float  # of the time in all


class Profile(Record):
    """What ran, the longest first; whether that is what the kernel claims; and where the trace is.

    ``verdict`` is confirmed, contradicted or unchecked, and ``says`` why. ``trace`` is empty where
    none was written.
    """

    rows: list[Ran]
    calls: int
    seconds: float
    verdict: str
    says: str
    trace: str


class ProfileReply(Record, tag="profiled", tag_field="say"):
    """The operators and kernels that ran in the profiled calls."""

    found: Profile


class SoloRequest(Record, tag="solo", tag_field="say"):
    """Prepare one case and read everything of it that is not timed in rounds."""

    planned: Planned
    replicate: int
    seed: int
    on_request: list[str] = []  # meters to read beside the usual ones
    deadline_seconds: float | None = None  # after these only what every case needs is read
    allocator: str = Allocator.SYSTEM.value  # which of PlanReply.allocators the worker takes
    right: bool = False  # another replicate has found the case right: it is not held to float64


class SoloReply(Record, tag="soloed", tag_field="say"):
    """The case's result so far, the bytes that it holds, and how long one call took."""

    result: Result
    held_bytes: int = 0
    free_bytes: int = 0
    call_seconds: float = 0.0


class ChunkRequest(Record, tag="chunk", tag_field="say"):
    """Time these cases in rounds; the anchor, when given, is dense."""

    members: list[Planned]
    anchor: Planned | None
    plan: Plan
    replicate: int
    seed: int
    deadline_seconds: float | None = None


class Timed(Record):
    """The measurements of one case in the rounds."""

    measurements: list[Measurement]
    flags: list[str] = []


class ChunkReply(Record, tag="chunked", tag_field="say"):
    """The measurements of the rounds, by case id, and where the seconds went."""

    timed: dict[str, Timed]
    wall_seconds: float = 0.0
    sampled_seconds: float = 0.0  # inside timed samples
    warm_seconds: float = 0.0  # in calls that are not timed
    lost: bool = False  # the device no longer answers the worker, which should be replaced


class ForgetRequest(Record, tag="forget", tag_field="say"):
    """Drop every prepared case; answered by the free bytes."""


class ForgetReply(Record, tag="forgotten", tag_field="say"):
    """Bytes that are free now."""

    free_bytes: int


class DescribeRequest(Record, tag="describe", tag_field="say"):
    """Describe these formats: knobs, kernels, and where they run."""

    names: list[str]


class FormatDetails(Record):
    """One format; ``unsupported`` maps "device dtype direction" to a reason, or to "".

    ``description`` is what its docstring says after the first sentence. ``defaults`` has no entry
    for a knob that must be given, and None for one that follows from the shape or other knobs.
    ``unsupported`` is that of the default kernel; ``by_kernel`` has the same for each kernel.
    """

    name: str
    summary: str
    description: str
    knobs: list[str]
    defaults: dict[str, Knob | None]
    kernels: list[str]
    paper: str
    unsupported: dict[str, str]
    by_kernel: dict[str, dict[str, str]]


class DescribeReply(Record, tag="described", tag_field="say"):
    """The formats as they describe themselves."""

    formats: list[FormatDetails]


class LayersRequest(Record, tag="layers", tag_field="say"):
    """Name the linear layers of a model, as a run stores it."""

    model: str


class LayersReply(Record, tag="layered", tag_field="say"):
    """Name, out_features and in_features of each layer."""

    layers: list[tuple[str, int, int]]


class ApplyRequest(Record, tag="apply", tag_field="say"):
    """Convert the model of a plan as its file says, and save it to a folder."""

    plan: str
    out: str


class ApplyReply(Record, tag="applied", tag_field="say"):
    """The folder that was written."""

    out: str


class Mistake(Record, tag="mistake", tag_field="say"):
    """The request could not be carried out: a mistake in it, or a bug with its traceback."""

    sentence: str
    detail: str = ""


Request = (
    PlanRequest
    | CeilingsRequest
    | HealthRequest
    | ProfileRequest
    | SoloRequest
    | ChunkRequest
    | ForgetRequest
    | DescribeRequest
    | LayersRequest
    | ApplyRequest
)
Reply = (
    Hello
    | PlanReply
    | CeilingsReply
    | HealthReply
    | ProfileReply
    | SoloReply
    | ChunkReply
    | ForgetReply
    | DescribeReply
    | LayersReply
    | ApplyReply
    | Mistake
)

encode = msgspec.json.Encoder().encode
_requests = msgspec.json.Decoder(Request)
_replies = msgspec.json.Decoder(Reply)


@without_gc()
def decode_request(line: bytes) -> Request:
    """Decode a request of the runner."""
    return _requests.decode(line)


@without_gc()
def decode_reply(line: bytes) -> Reply:
    """Decode a reply of the worker."""
    return _replies.decode(line)
