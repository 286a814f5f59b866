"""Gate pruning: keep the neurons whose gate is most open, as CATS does with a threshold (arXiv 2404.08763)."""

from collections.abc import Sequence
from typing import Any

from dipsim import Fraction, Group, ModelShape, Policy


class Gate(Policy):
    """Reads all of gate_proj and p = `fraction` of up_proj and down_proj: (1 + 2 p) / 3 of the MLP."""

    fraction: Fraction = 0.5

    def groups(self, shape: ModelShape) -> Sequence[Group]:
        return (Group("neuron", ("up_proj", "down_proj"), "neuron", int(self.fraction * shape.intermediate_size)),)

    def scores(self, group: Group, acts: Any) -> Any:
        return abs(acts.gate)
