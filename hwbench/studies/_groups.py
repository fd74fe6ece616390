"""Groups of layers of one kind at neighbouring depths, which share a sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hwbench import checkpoints

DEPTHS = 5
"""Into how many parts the depth of a model is cut."""

Named = tuple[str, int, int]
"""Name, out_features and in_features of a layer."""


@dataclass(frozen=True)
class Group:
    """Layers of one kind and shape, one after the other."""

    members: tuple[str, ...]
    shape: tuple[int, int]

    @property
    def name(self) -> str:
        """The name of its only layer, else one such as ``layers.{0-4}.mlp.up_proj``."""
        first, last = self.members[0], self.members[-1]
        depths = checkpoints.depth(first), checkpoints.depth(last)
        if len(self.members) == 1 or depths[0] is None or depths[1] is None:
            return first
        return checkpoints.group_of(first, depths[0], depths[1])

    @property
    def middle(self) -> str:
        """The layer that stands for the others where each would take long."""
        return self.members[len(self.members) // 2]


def grouped(layers: Sequence[Named], depths: int = DEPTHS) -> list[Group]:
    """Every layer in one group, in the order of the model.

    A group ends where a depth is left out or where the shape changes, so that its name and its
    shape hold for all of it. A layer without a number in its name is a group of its own.
    """
    places = [place for name, *_ in layers if (place := checkpoints.depth(name)) is not None]
    first, count = min(places, default=0), max(places, default=0) - min(places, default=0) + 1
    groups: list[Group] = []
    last: dict[str, tuple[int, int, int]] = {}  # of a kind: its depth, its part, its group
    for name, *shape in layers:
        place, sides = checkpoints.depth(name), (shape[0], shape[1])
        if place is None:
            groups.append(Group((name,), sides))
            continue
        kind, part = checkpoints.group_of(name, 0, 0), (place - first) * depths // count
        before = last.get(kind)
        if before and before[:2] == (place - 1, part) and groups[before[2]].shape == sides:
            index = before[2]
            groups[index] = Group((*groups[index].members, name), sides)
        else:
            index = len(groups)
            groups.append(Group((name,), sides))
        last[kind] = (place, part, index)
    return groups


def of_name(name: str) -> tuple[str, ...]:
    """The layers of a group by its name."""
    return tuple(checkpoints.group_members(name)) or (name,)
