"""What layers may become under a budget, and which of it loses least: plans without measuring."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hwbench.errors import UnknownNameError, UsageError, shortened
from hwbench.studies import _knapsack
from hwbench.studies._knapsack import Option

VARIANTS = {"half": (0.5, 1.0), "error": (0.0, 1.0), "steep": (1.0, 1.5)}
"""Other beliefs in what is lost: the power of the sensitivity, and that of the squared error."""

TOLERANCE = 0.02
"""A plan is made anew if its measured pass exceeds a budget of time by more than this share."""

_KINDS = ("bytes", "time", "params")
_BUDGET = re.compile(r"(\w+)\s*=\s*([-−]?)\s*(\d+(?:\.\d+)?)\s*%")


@dataclass(frozen=True)
class Budget:
    """The cost that a model may have, as a share of its dense cost.

    Bytes and parameters are those of all linear layers together; the time is that of a whole pass.
    """

    kind: str
    share: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``bytes=50%``, ``params=50%``, ``time=70%``, or with a minus what is to be saved.

        Raises:
            UsageError: it is none of these.
        """
        match = _BUDGET.fullmatch(text.strip())
        if not match:
            raise UsageError(
                f"--budget is bytes=50%, params=50% or time=-30%, not {shortened(repr(text))}."
            )
        if match[1] not in _KINDS:
            raise UnknownNameError("budget", match[1], _KINDS)
        share = float(match[3]) / 100
        share = 1 - share if match[2] else share
        if not 0 < share <= 1:
            raise UsageError(
                f"--budget {shortened(text, 40)} leaves {shortened(f'{share:.0%}', 20)}; it must "
                "be above 0 and at most 100 %."
            )
        return cls(match[1], share)

    def __str__(self) -> str:
        return f"{self.kind}={100 * self.share:g}%"

    def limit(self, dense: Costs, rest_seconds: float = 0.0, missed_seconds: float = 0.0) -> float:
        """Return the cost that all linear layers may have, given dense's and that of the rest.

        ``missed_seconds`` is saved beyond it, because measured passes of earlier plans exceeded it.
        """
        if self.kind != "time":
            return self.share * dense.of(self.kind)
        return self.share * (dense.time_seconds + rest_seconds) - rest_seconds - missed_seconds


@dataclass(frozen=True)
class Costs:
    """The costs and the loss of layers."""

    time_seconds: float
    bytes: float
    parameters: float
    loss: float

    def of(self, kind: str) -> float:
        """The cost that a budget of this kind limits."""
        names = {"bytes": self.bytes, "time": self.time_seconds, "params": self.parameters}
        return names[kind]


@dataclass(frozen=True)
class Layer:
    """One layer, and what it costs as each candidate that it can be."""

    name: str
    shape: tuple[int, int]
    options: dict[str, Costs]
    group: str = ""  # layers of one group have one candidate
    sensitivity: float = 1.0  # what a unit of its squared error loses


@dataclass(frozen=True)
class Passed:
    """Seconds of a pass of the model, as it was and as planned; they were taken in turn."""

    dense_seconds: float
    planned_seconds: float

    @property
    def share(self) -> float:
        """The time of the planned pass over that of the dense one."""
        return self.planned_seconds / self.dense_seconds


@dataclass(frozen=True)
class Choice:
    """The plan of a budget, beside dense and the best single format."""

    budget: Budget
    picked: dict[str, str]
    planned: Costs
    dense: Costs
    single: str | None
    alone: Costs | None
    gap: float
    layers: list[Layer] = field(repr=False)
    rest_seconds: float = 0.0  # of a pass of the model, beside its linear layers
    measured: dict[str, float] = field(default_factory=dict)  # of whole candidates: what is lost
    kept: str = ""  # the one of them that lost least
    passed: Passed | None = None  # of a budget of time: what a pass was measured to take
    missed_seconds: float = 0.0  # saved beyond the budget, as passes of earlier plans exceeded it

    @property
    def limit(self) -> float:
        """The cost that all linear layers together may have."""
        return self.budget.limit(self.dense, self.rest_seconds, self.missed_seconds)

    @property
    def excess_seconds(self) -> float:
        """By how much the measured pass exceeds the budget, on the scale of the layers' times.

        It is zero where the excess is at most ``TOLERANCE`` of the budget.
        """
        if self.passed is None or self.passed.share <= (1 + TOLERANCE) * self.budget.share:
            return 0.0
        return (self.passed.share - self.budget.share) * self.dense_pass_seconds

    @property
    def spare_seconds(self) -> float:
        """The time of the budget that the measured pass leaves unused, on the same scale."""
        if self.passed is None:
            return 0.0
        return max(self.budget.share - self.passed.share, 0.0) * self.dense_pass_seconds

    @property
    def dense_pass_seconds(self) -> float:
        """The time of a dense pass, as its layers and the rest add up."""
        return self.dense.time_seconds + self.rest_seconds

    def missed_at(self, seconds: float) -> float:
        """Return the ``missed_seconds`` of a plan whose layers may take so long together."""
        return self.budget.limit(self.dense, self.rest_seconds) - seconds

    @property
    def lost(self) -> float:
        """The loss of the plan: the measured one, or else what its layers add up to."""
        return self.measured[self.kept] if self.measured else self.planned.loss

    @property
    def wins_everywhere(self) -> str | None:
        """The one candidate that every layer has, where there is one."""
        labels = set(self.picked.values())
        return labels.pop() if len(labels) == 1 else None


def choose(
    layers: Sequence[Layer],
    budget: Budget,
    rest_seconds: float = 0.0,
    missed_seconds: float = 0.0,
) -> Choice:
    """The candidate of each layer, or group, that loses least together within the budget.

    Args:
        layers: with what each costs as each candidate.
        budget: what the model may cost.
        rest_seconds: of a pass of the model, beside its linear layers; no candidate changes it.
        missed_seconds: saved beyond the budget, as measured passes of earlier plans exceeded it.

    Raises:
        UsageError: no choice meets the budget; the sentence says what can be met.
    """
    together = list(_grouped(layers).values())
    labels = [sorted(set.intersection(*(set(each.options) for each in own))) for own in together]
    groups = [
        [_option(own, label, budget.kind) for label in own_labels]
        for own, own_labels in zip(together, labels, strict=True)
    ]
    dense = total(layers, dict.fromkeys((layer.name for layer in layers), "dense"))
    limit = budget.limit(dense, rest_seconds, missed_seconds)
    solution = _knapsack.solve(groups, limit) if limit > 0 else None
    if solution is None:
        raise UsageError(_unmet(budget, _knapsack.cheapest(groups), dense, rest_seconds))
    label_of = {
        layer.name: own_labels[index]
        for own, own_labels, index in zip(together, labels, solution.chosen, strict=True)
        for layer in own
    }
    picked = {layer.name: label_of[layer.name] for layer in layers}
    single = best_single(layers, budget.kind, limit)
    alone = total(layers, uniform(layers, single)) if single else None
    planned = total(layers, picked)
    return Choice(
        budget, picked, planned, dense, single, alone, solution.gap, list(layers), rest_seconds,
        missed_seconds=missed_seconds,
    )  # fmt: skip


def _unmet(budget: Budget, least: float, dense: Costs, rest_seconds: float) -> str:
    """Name the smallest budget that can be met."""
    who, what = "the linear layers need", f"their {budget.kind}"
    if budget.kind == "time" and rest_seconds:
        who, what = "a pass of the model needs", "its time"
        least, whole = least + rest_seconds, dense.time_seconds + rest_seconds
    else:
        whole = dense.of(budget.kind)
    return (
        f"The budget {budget} cannot be met: as measured, {who} at least "
        f"{_percent_up(least / whole)} of {what} when dense; ask for that, or for more formats and "
        "densities."
    )


def _percent_up(share: float) -> str:
    return f"{math.ceil(1e3 * share) / 10:g} %"


def uniform(layers: Sequence[Layer], label: str) -> dict[str, str]:
    """Every layer in one candidate; one that cannot be it stays dense."""
    return {each.name: label if label in each.options else "dense" for each in layers}


def best_single(
    layers: Sequence[Layer], kind: str, limit: float, among: Sequence[str] | None = None
) -> str | None:
    """The candidate that, alone in all layers, loses least within the limit; None if none does."""
    every = {label for layer in layers for label in layer.options}
    labels = sorted(every if among is None else every & set(among))
    fits = []
    for label in labels:
        costs = total(layers, uniform(layers, label))
        if costs.of(kind) <= limit:
            fits.append((costs.loss, costs.of(kind), label))
    return min(fits)[2] if fits else None


def _grouped(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """The layers of each group; a layer without one is a group of its own."""
    by_group: dict[str, list[Layer]] = {}
    for layer in layers:
        by_group.setdefault(layer.group or layer.name, []).append(layer)
    return by_group


def _option(layers: Sequence[Layer], label: str, kind: str) -> Option:
    costs = total(layers, {layer.name: label for layer in layers})
    return Option(costs.of(kind), costs.loss)


def is_single(name: str) -> bool:
    """Whether a candidate is one format in every layer: its name is the label of that format."""
    return name not in ("plan", *VARIANTS)


def candidates(choice: Choice) -> dict[str, dict[str, str]]:
    """Whole models that are worth a measurement: the plan, variants of it, and single formats.

    Losses do not add up as the plan takes them to. The variants believe less in the sensitivities
    of groups, or take a large error for more than its square. Of each format the uniform candidate
    that loses least within the budget is there, so that none of them is better than what is kept.
    """
    labels_of = {"plan": choice.picked}
    for name, (trust, power) in VARIANTS.items():
        layers = [_believed(layer, trust, power) for layer in choice.layers]
        variant = choose(layers, choice.budget, choice.rest_seconds, choice.missed_seconds)
        labels_of[name] = variant.picked
    labels = {label for layer in choice.layers for label in layer.options}
    for format_ in sorted({label.split()[0] for label in labels}):
        own = [label for label in labels if label.split()[0] == format_]
        if single := best_single(choice.layers, choice.budget.kind, choice.limit, own):
            labels_of[single] = uniform(choice.layers, single)
    distinct: dict[str, dict[str, str]] = {}
    # Of two candidates that are equal, the single format gives the name: it comes later.
    for name, picked in reversed(labels_of.items()):
        if picked not in distinct.values():
            distinct[name] = picked
    return dict(reversed(distinct.items()))


def _believed(layer: Layer, trust: float, power: float) -> Layer:
    """The layer with a loss of s^trust · (e²)^power, of its sensitivity s and squared error e²."""
    s = layer.sensitivity
    options = {
        label: replace(costs, loss=s**trust * (costs.loss / s) ** power)
        for label, costs in layer.options.items()
    }
    return replace(layer, options=options)


def decided(choice: Choice, measured: Mapping[str, float]) -> Choice:
    """The choice with the candidate that lost least when measured, and the best single format.

    Raises:
        UsageError: no candidate was measured.
    """
    every = candidates(choice)
    measured_names = [name for name in every if name in measured]
    if not measured_names:
        raise UsageError("None of the candidates of this budget was measured; choose anew.")
    best = min(measured_names, key=lambda name: measured[name])
    singles = [name for name in measured_names if is_single(name)]
    single = min(singles, key=lambda name: measured[name], default=None)
    return replace(
        choice,
        picked=every[best],
        planned=total(choice.layers, every[best]),
        single=single,
        alone=total(choice.layers, every[single]) if single else None,
        measured=dict(measured),
        kept=best,
    )


def total(layers: Sequence[Layer], picked: Mapping[str, str]) -> Costs:
    """Return the summed costs and losses of the layers, each as its candidate."""
    each = [layer.options[picked[layer.name]] for layer in layers]
    parts = ("time_seconds", "bytes", "parameters", "loss")
    return Costs(*(math.fsum(getattr(costs, part) for costs in each) for part in parts))
