"""Up pruning: keep the neurons of largest |up_proj x| (paper section 3)."""

from collections.abc import Sequence
from typing import Any

from dipsim import Fraction, Group, ModelShape, Policy


class Up(Policy):
    """Reads all of up_proj and p = `fraction` of gate_proj and down_proj: (1 + 2 p) / 3 of the MLP."""

    fraction: Fraction = 0.5

    def groups(self, shape: ModelShape) -> Sequence[Group]:
        return (Group("neuron", ("gate_proj", "down_proj"), "neuron", int(self.fraction * shape.intermediate_size)),)

    def scores(self, group: Group, acts: Any) -> Any:
        return abs(acts.up_proj)
