"""GLU pruning: keep the neurons of largest |glu| (paper section 3).

An oracle for the columns of down_proj: the whole of gate_proj and up_proj is read to know which neurons matter.
"""

from collections.abc import Sequence
from typing import Any

from dipsim import Fraction, Group, ModelShape, Policy


class Magnitude(Policy):
    """Reads (2 + p) / 3 of the MLP, with p = `fraction` of the neurons."""

    fraction: Fraction = 0.5

    def groups(self, shape: ModelShape) -> Sequence[Group]:
        return (Group("neuron", ("down_proj",), "neuron", int(self.fraction * shape.intermediate_size)),)

    def scores(self, group: Group, acts: Any) -> Any:
        return abs(acts.glu)
