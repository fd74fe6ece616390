"""Every quantity that hwbench reads, declared once: its name, its unit, and where it is shown.

A meter or a workload names the quantities that it reads; whatever shows numbers (tables, the page,
CSV, charts, the gate) reads their declarations here, or in the run file where another package
declared them. A name that nobody declared is shown under that name, with the unit that the
measurement gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

TERMINAL, PAGE, CHART = "terminal", "page", "chart"
"""The places where a quantity may be shown: a column of the terminal's table, a column of the
page's table, a chart of the page with a bar for each format."""


class Quantity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a meter reads, or a workload scores.

    ``title`` names it in headings, axes and sentences, ``column`` at the head of a column.
    ``metric`` is what ``check --metric`` calls it: several quantities may share one. An ``exact``
    quantity has no noise: two values of it are equal, or they differ. ``levels`` are the scores at
    which the page answers "at the accuracy I need"; ``lossless`` is the score of the dense matrix.
    """

    name: str
    unit: str = ""
    better: str = "lower"  # or "higher"
    title: str = ""
    column: str = ""
    shown: tuple[str, ...] = (TERMINAL, PAGE, CHART)
    digits: int = 3
    metric: str = ""
    exact: bool = False
    levels: tuple[float, ...] = ()
    zero: bool = False  # whether an axis begins at zero, where nothing is lost
    lossless: float | None = None

    @property
    def heading(self) -> str:
        """The name in words: ``title``, or the name itself without one."""
        return self.title or self.name.replace("_", " ")

    @property
    def short(self) -> str:
        """The heading of a column."""
        return self.column or self.heading


def _timed(name: str, title: str = "", **more: Any) -> Quantity:
    return Quantity(name=name, unit="s", title=title, **{"shown": (), **more})


TIME = _timed("time_seconds", "time", metric="time")
GRAPH = _timed("graph_seconds", "time in a graph", column="graph", shown=(TERMINAL, PAGE))
HOST = _timed("host_seconds", "time to launch")
RELATIVE = Quantity(name="relative_time", unit="×", title="relative", metric="relative", shown=())
MINOR_FAULTS = Quantity(name="minor_faults", title="minor page faults a call", shown=())
SYSTEM_FAULTS = Quantity(
    name="system_faults", title="page faults a call with the system's allocator",
    column="system faults", shown=(),
)  # fmt: skip
SYSTEM_RELATIVE = Quantity(
    name="system_relative", unit="×", title="time with the system's allocator",
    column="system's allocator", shown=(PAGE,),
)  # fmt: skip
NUMERICAL_ERROR = Quantity(
    name="numerical_error", title="numerical error", column="num. error",
    digits=2, shown=(TERMINAL, PAGE),
)  # fmt: skip
SCORE = Quantity(name="score", metric="score", shown=())
SAVED_BYTES = Quantity(
    name="saved_bytes", unit="B", title="bytes saved for backward", column="saved",
    metric="memory", exact=True, shown=(TERMINAL, PAGE),
)  # fmt: skip
PEAK_BYTES = Quantity(
    name="peak_bytes", unit="B", title="peak memory of a step", column="peak",
    metric="memory", exact=True, shown=(PAGE,),
)  # fmt: skip
GRADIENT_BYTES = Quantity(name="gradient_bytes", unit="B", exact=True, shown=())
ENERGY = Quantity(name="energy_joules", unit="J", title="energy a call", column="energy")
PREPARE = _timed("prepare_seconds", "projecting and packing", shown=(CHART,))
UNHEALED_SCORE = Quantity(name="unhealed_score", better="higher", shown=())
RETRIEVAL_AGREEMENT = Quantity(
    name="retrieval_agreement", better="higher", shown=(), levels=(0.95, 0.9, 0.8)
)
PARTNER_TOP1 = Quantity(
    name="partner_top1", better="higher", title="partner found first", column="partner",
    shown=(TERMINAL, PAGE),
)  # fmt: skip
PARTNER_MRR = Quantity(name="partner_mrr", better="higher", shown=())
PARTNER_MRR_LOW = Quantity(name="partner_mrr_low", better="higher", shown=())
PARTNER_MRR_HIGH = Quantity(name="partner_mrr_high", better="higher", shown=())
CENTRED_LEAD = Quantity(
    name="centred_lead", better="higher", title="lead of the partner", column="lead",
    shown=(TERMINAL, PAGE),
)  # fmt: skip
CENTRED_LEAD_LOW = Quantity(name="centred_lead_low", better="higher", shown=())
CENTRED_LEAD_HIGH = Quantity(name="centred_lead_high", better="higher", shown=())
PAIR_MRR = Quantity(name="pair_mrr", better="higher", shown=())
PAIR_LEADS = Quantity(name="pair_leads", better="higher", shown=())
UNHEALED_PERPLEXITY = Quantity(name="unhealed_perplexity", shown=())
ORIGINAL_PERPLEXITY = Quantity(name="original_perplexity", shown=())
PERPLEXITY_RATIO = Quantity(name="perplexity_ratio", shown=())
PERPLEXITY_RATIO_LOW = Quantity(name="perplexity_ratio_low", shown=())
PERPLEXITY_RATIO_HIGH = Quantity(name="perplexity_ratio_high", shown=())
NEXT_TOKEN_DIVERGENCE = Quantity(
    name="next_token_divergence", unit="nats/token", title="divergence of the next token",
    column="KL", shown=(TERMINAL, PAGE),
)  # fmt: skip
TOP1_AGREEMENT = Quantity(
    name="top1_agreement", better="higher", title="same likeliest token", column="top 1",
    shown=(TERMINAL, PAGE),
)  # fmt: skip
WINDOW_NATS = Quantity(name="window_nats", unit="nats/token", shown=())
KERNEL_LOGITS_ERROR = Quantity(name="kernel_logits_error", shown=())
MODEL_SECONDS = _timed("model_seconds")
MODEL_BYTES = Quantity(name="model_bytes", unit="B", exact=True, shown=())
MODEL_PARAMETERS = Quantity(name="model_parameters", exact=True, shown=())
STEP_SECONDS = _timed("step_seconds")
COMPILE = _timed("compile_seconds", "first compilation", shown=(CHART,))
FIRST_CALL = _timed("first_call_seconds", "first call", shown=(CHART,))
COUNTED_FLOPS = Quantity(name="counted_flops", unit="FLOP", exact=True, shown=())
GRAPH_BREAKS = Quantity(name="graph_breaks", exact=True, shown=())
COMPILED_GRAPHS = Quantity(name="compiled_graphs", exact=True, shown=())

MEASURED = (
    *(TIME, GRAPH, HOST, RELATIVE, SCORE, SAVED_BYTES, PEAK_BYTES, GRADIENT_BYTES, ENERGY),
    *(NUMERICAL_ERROR, COMPILE, FIRST_CALL, PREPARE, UNHEALED_SCORE, RETRIEVAL_AGREEMENT),
    *(UNHEALED_PERPLEXITY, ORIGINAL_PERPLEXITY, PERPLEXITY_RATIO, MODEL_SECONDS, MODEL_BYTES),
    *(PERPLEXITY_RATIO_LOW, PERPLEXITY_RATIO_HIGH, NEXT_TOKEN_DIVERGENCE, TOP1_AGREEMENT),
    *(WINDOW_NATS, KERNEL_LOGITS_ERROR, PARTNER_TOP1, PARTNER_MRR, PARTNER_MRR_LOW),
    *(PARTNER_MRR_HIGH, CENTRED_LEAD, CENTRED_LEAD_LOW, CENTRED_LEAD_HIGH, PAIR_MRR, PAIR_LEADS),
    *(MODEL_PARAMETERS, STEP_SECONDS, COUNTED_FLOPS, GRAPH_BREAKS, COMPILED_GRAPHS),
    *(MINOR_FAULTS, SYSTEM_FAULTS, SYSTEM_RELATIVE),
)
"""The quantities of a run file's measurements, in the order of their columns."""

# Runs of the workload ``model_pass`` declare these, so that no other table has a column for them.
LINEAR_SECONDS = _timed("linear_seconds")
DENSE_PASS_SECONDS = _timed("dense_pass_seconds")

PROJECTION_ERROR = Quantity(
    name="projection_error", levels=(0.05, 0.1, 0.2, 0.5), zero=True, lossless=0.0
)
OUTPUT_ERROR = Quantity(name="output_error", levels=(0.05, 0.1, 0.2, 0.5), zero=True, lossless=0.0)
# What a good perplexity or loss is depends on the model and the text: these have no levels.
PERPLEXITY = Quantity(name="perplexity")
VALIDATION_LOSS = Quantity(name="validation_loss", unit="nats/token")
PSNR = Quantity(
    name="psnr_db", unit="dB", better="higher", title="PSNR",
    levels=(40, 35, 30, 25, 20), lossless=math.inf,
)  # fmt: skip
EMBEDDING_COSINE = Quantity(
    name="embedding_cosine", better="higher", title="cosine similarity of embeddings",
    levels=(0.99, 0.95, 0.9, 0.8),
)  # fmt: skip
EMBEDDING_DISTANCE = Quantity(
    name="embedding_distance", title="1 − cosine of embeddings", zero=True
)
PASS_SECONDS = Quantity(name="pass_seconds", unit="s", title="time of a pass", zero=True)
TEST_ACCURACY = Quantity(name="test_accuracy", better="higher", levels=(0.95, 0.9, 0.8))

SCORES = (
    *(PROJECTION_ERROR, OUTPUT_ERROR, PERPLEXITY, VALIDATION_LOSS, PSNR, EMBEDDING_COSINE),
    *(EMBEDDING_DISTANCE, PASS_SECONDS, TEST_ACCURACY),
)
"""The scores that the quantity ``score`` of a case may stand for; its measurement names one."""

_BUILT_IN = {each.name: each for each in (*MEASURED, *SCORES)}


def built_in(name: str) -> bool:
    """Whether hwbench itself declares the quantity."""
    return name in _BUILT_IN


def find(name: str, declared: Iterable[Quantity] = (), unit: str = "") -> Quantity:
    """The declaration of a quantity; made from its name and unit where nobody declared it.

    Args:
        name: what measurements call it.
        declared: what a run file declares; hwbench's own declarations come first.
        unit: the unit of the measurement, for a quantity that nobody declared.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    return next((each for each in declared if each.name == name), Quantity(name=name, unit=unit))


def foreign(declared: Iterable[Quantity]) -> list[Quantity]:
    """Return the quantities that a run file must declare: those hwbench does not declare itself."""
    return [each for each in {q.name: q for q in declared}.values() if not built_in(each.name)]


def _metrics() -> Mapping[str, tuple[str, ...]]:
    names: dict[str, list[str]] = {}
    for each in (TIME, RELATIVE, PEAK_BYTES, SAVED_BYTES, SCORE):
        names.setdefault(each.metric, []).append(each.name)
    return {metric: tuple(members) for metric, members in names.items()}


METRICS = _metrics()
"""The quantities of each metric that several may share; any other quantity is its own metric."""
