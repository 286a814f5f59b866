"""The router's own choice among the experts of a mixture: the baseline that changes nothing."""

from collections.abc import Sequence
from typing import Any

from dipsim import Group, ModelShape, Policy
from dipsim.workload.shape import MATRICES


class Experts(Policy):
    """Uses the experts that the router wants most, as many as the model takes."""

    def groups(self, shape: ModelShape) -> Sequence[Group]:
        return (Group("expert", MATRICES, "expert", shape.experts.num_experts_per_tok),)

    def scores(self, group: Group, acts: Any) -> Any:
        return acts.preference
