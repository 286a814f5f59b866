"""DIP with a fixed threshold per layer in place of the k largest: how much a token reads varies with the token."""

from collections.abc import Sequence
from dataclasses import replace

from dipsim import Group, ModelShape

from .dip import Dip


class DipThreshold(Dip):
    """Reads `keep` of the MLP on average; the thresholds are percentiles of each layer's scores."""

    def groups(self, shape: ModelShape) -> Sequence[Group]:
        return [replace(group, threshold=True) for group in super().groups(shape)]
