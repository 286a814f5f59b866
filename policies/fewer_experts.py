"""Fewer experts than the model takes: the less wanted are left out, whatever is resident."""

from collections.abc import Sequence
from typing import Any

from pydantic import PositiveInt

from dipsim import Group, InputError, ModelShape

from .experts import Experts


class FewerExperts(Experts):
    """Uses the `experts` of largest weight; the weights of those left are scaled to sum to what they did."""

    experts: PositiveInt

    def groups(self, shape: ModelShape) -> Sequence[Group]:
        (group,) = super().groups(shape)
        if self.experts > group.k:
            raise InputError(f"fewer-experts: experts: {self.experts} is more than the {group.k} that the model takes")
        return (Group("expert", group.matrices, "expert", self.experts),)

    def scores(self, group: Group, acts: Any) -> Any:
        return acts.weights
