"""Counts the work of ``torch.compile`` in this process so far, for the meters."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hwbench.workloads._base import Subject

_GRAPHS = 4096  # one call that every format shares is compiled once for each of them


@dataclass(frozen=True)
class Compiled:
    """Counts since the process began: graphs compiled, and breaks with their reasons."""

    graphs: int
    breaks: int
    reasons: tuple[str, ...]

    def since(self, before: Compiled) -> Compiled:
        """The difference to ``before``; earlier reasons are not repeated."""
        new = tuple(reason for reason in self.reasons if reason not in before.reasons)
        return Compiled(self.graphs - before.graphs, self.breaks - before.breaks, new)


def compiled() -> Compiled:
    """The counts so far. Importing torch's compiler takes seconds; call it for compiled cases."""
    from torch._dynamo.utils import counters

    breaks = counters["graph_break"]
    return Compiled(counters["stats"]["unique_graphs"], sum(breaks.values()), tuple(breaks))


def never_fall_back() -> None:
    """Let torch compile each case, however many share their code, instead of running it eagerly.

    Torch gives up on a function after eight graphs and runs it uncompiled with no more than a log
    line; here that would put eager times under the name of compiled ones.
    """
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = dynamo.accumulated_recompile_limit = _GRAPHS
    dynamo.fail_on_recompile_limit_hit = True


def call(subject: Subject) -> None:
    """Make one untimed call; the first call compiles."""
    (state,) = subject.states(1)
    with torch.set_grad_enabled(subject.grad):
        subject.step(state)
