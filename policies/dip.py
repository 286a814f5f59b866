"""Dynamic Input Pruning (paper section 4): the inputs of every matrix are pruned, so no predictor is needed."""

from collections.abc import Sequence
from math import exp, log
from typing import Any, Self

from pydantic import StrictBool, model_validator

from dipsim import Fraction, Group, ModelShape, Policy

LARGEST = 700.0  # whose exponential is finite


class Dip(Policy):
    """Reads `keep` of the MLP: p_in of the inputs of gate_proj and up_proj, p_glu of the neurons of down_proj.

    With `free`, a token also uses every resident column, and those that are read along with its own.
    """

    keep: Fraction = 0.5
    free: StrictBool = False

    @property
    def p_in(self) -> float:
        """The paper's split of `keep`, a straight line in logit space (docs/background/equations.md, section 2)."""
        if self.keep == 1:
            return 1.0
        logit = 0.9849930711 * log(self.keep / (1 - self.keep)) + 0.2997647759
        return 1 / (1 + exp(min(-logit, LARGEST)))

    @property
    def p_glu(self) -> float:
        return 3 * self.keep - 2 * self.p_in

    @model_validator(mode="after")
    def _split_exists(self) -> Self:
        if not 0 <= self.p_glu <= 1:
            raise ValueError(f"keep: {self.keep} would need p_glu = {self.p_glu:.3f}, outside [0, 1]; choose another")
        return self

    def groups(self, shape: ModelShape) -> Sequence[Group]:
        return (
            Group("input", ("gate_proj", "up_proj"), "input", int(self.p_in * shape.hidden_size), free=self.free),
            Group("neuron", ("down_proj",), "neuron", int(self.p_glu * shape.intermediate_size), free=self.free),
        )

    def scores(self, group: Group, acts: Any) -> Any:
        return abs(acts.mlp_input) if group.axis == "input" else abs(acts.glu)
