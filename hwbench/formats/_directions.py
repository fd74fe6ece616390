"""The parts of a training step that are timed, and what products cost in each."""

from __future__ import annotations

from collections.abc import Sequence

FORWARD, BACKWARD, STEP = "forward", "backward", "step"
BACKWARD_INPUT, BACKWARD_WEIGHT = "backward_input", "backward_weight"


def by_direction(
    direction: str, *, forward: int, to_input: int, to_weight: int, backward: int | None = None
) -> int:
    """The figure of a direction, where a step is a forward pass and a backward pass.

    Args:
        direction: one of the five.
        forward: of the output.
        to_input: of the gradient of x alone.
        to_weight: of the gradients of the weight alone.
        backward: of both gradients; their sum, if it is not given.
    """
    both = to_input + to_weight if backward is None else backward
    return {
        FORWARD: forward,
        BACKWARD_INPUT: to_input,
        BACKWARD_WEIGHT: to_weight,
        BACKWARD: both,
        STEP: forward + both,
    }[direction]


def chain_flops(tokens: int, chain: Sequence[int], direction: str, again: int = 0) -> int:
    """FLOPs of products one after the other, by their multiply-adds a token."""
    each, later = 2 * tokens * sum(chain), 2 * tokens * sum(chain[1:])
    extra = 2 * tokens * again
    return by_direction(
        direction,
        forward=each,
        to_input=each,
        to_weight=each + later + extra,
        backward=2 * each + extra,
    )


def dense_flops(tokens: int, weights: int, direction: str) -> int:
    """FLOPs of the dense product."""
    return 2 * tokens * weights * {BACKWARD: 2, STEP: 3}.get(direction, 1)
