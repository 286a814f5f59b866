"""The base of every policy: which columns of the MLP's matrices a token reads.

A plugin is its formulas. Selection, ties, caching and accounting are the framework's, so that every policy is compared
under the same rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from dipsim.basics.assets import policy_name
from dipsim.basics.fields import Strict
from dipsim.sparsity.levels import Levels, Units
from dipsim.sparsity.ranking import top_k
from dipsim.workload.shape import MATRICES, ModelShape

Axis = Literal["input", "neuron", "expert"]
SHIPPED, OWN = "dipsim.policies", "dipsim_plugins"  # the packages of the shipped plugins and of users' own


@dataclass(frozen=True)
class Group:
    """Matrices that share one mask: `k` columns along `axis` are kept for each token.

    The axis "input" has hidden_size columns, the axis "neuron" has intermediate_size. Those of "expert" are the experts
    of a mixture, whose group has all three matrices. With `threshold`, a column is
    kept if its score reaches a limit; the limit of each layer is set so that k columns are kept on average. With
    `price` (score per byte), those columns are read that are worth it, and k is not used. With `free`, a token also
    uses every resident column and those that are read along with its mask; a `price` implies it. With `levels` and a
    `price`, a token has every column at some level of precision, at least at the one that is resident.

    `copies` of an expert lie side by side in Flash, the exact one first; they are its bytes, in parts of the exact one.
    Unit c E + e is copy c of expert e, so C copies make N = C E units, of which scores, masks and residents are.
    """

    name: str
    matrices: tuple[str, ...]
    axis: Axis
    k: int
    threshold: bool = False
    price: float | None = None
    free: bool = False
    levels: Levels | None = None
    copies: tuple[float, ...] = (1.0,)

    @property
    def uses_all(self) -> bool:
        """Whether a token uses whatever is resident or read."""
        return self.free or self.price is not None


class Policy(Strict):
    """Base of all policies. The fields of a subclass are its parameters.

    Matrices in no group are read whole. A subclass that overrides `rerank` or `select` is cache-aware. No method may
    change the arrays that it is given.
    """

    def groups(self, shape: ModelShape) -> Sequence[Group]:
        """The groups, in the order in which a token computes them. By default there are none: everything is read."""
        return ()

    def scores(self, group: Group, acts: Any) -> Any:
        """The importance of each column [..., N]; the k largest are kept.

        `acts` are the layer's `Activations`: `mlp_input`, `gate_proj`, `up_proj`, `gate` and `glu`, numpy arrays of a
        recorded trace or torch tensors of a live model. Leading axes are tokens. Of a mixture they are its `Routing`:
        `preference`, by which the router itself chooses, `weights` and `logits`. Where groups have levels, `levels` has
        by name what is known so far, and a live model's values come from weights of just these levels.
        """
        raise NotImplementedError(f"{type(self).__name__} has groups and must define scores")

    def rerank(self, scores: Any, resident: Any) -> Any:
        """Scores [N] of one token, changed by which columns are resident [N] (bool). Only the ranking sees them."""
        return scores

    def select(self, group: Group, scores: Any, resident: Any) -> Any:
        """Mask [N] (bool) of one token, from its scores [N] and which columns are resident [N].

        By default it is the k best after `rerank`. Override it only where selection is not a ranking. Of experts it
        may choose fewer than k, and of an expert with copies it chooses one at most: the exact one too where that is
        resident and a lower one would do.
        """
        return top_k(self.rerank(scores, resident), group.k)

    def units(self, group: Group, layer: int) -> Units:
        """What is known beforehand of the columns of a group that has levels, in one layer."""
        raise NotImplementedError(f"{type(self).__name__} has levels and must define units")

    def at(self, position: int) -> Self:
        """The policy at the `position`-th token of a sequence, from 0. By default it never changes."""
        return self

    def static_bytes(self, shape: ModelShape) -> float:
        """Bytes that the policy keeps in DRAM and reads for every token, such as a predictor's weights."""
        return 0.0

    def files(self) -> Sequence[Path]:
        """The files that the formulas read: by default those that a parameter is the path of."""
        texts = (value for value in self.model_dump().values() if isinstance(value, str))
        return [path for path in map(Path, texts) if path.is_file()]

    @property
    def cache_aware(self) -> bool:
        """Whether the masks depend on what is resident."""
        return type(self).rerank is not Policy.rerank or type(self).select is not Policy.select

    @property
    def shipped(self) -> bool:
        """Whether the policy comes with dipsim."""
        return type(self).__module__.startswith(f"{SHIPPED}.")

    @property
    def name(self) -> str:
        """The name of the plugin's file, `dip-ca` for dip_ca.py; the class's own name where there is no such file."""
        package, _, module = type(self).__module__.rpartition(".")
        return policy_name(module) if package in (SHIPPED, OWN) else type(self).__name__.lower()

    @property
    def label(self) -> str:
        """Name and parameters, e.g. `dip-ca(keep=0.75, gamma=0.5)`: those that were set, in the order declared."""
        shown = [f"{key}={getattr(self, key)!r}" for key in type(self).model_fields if key in self.model_fields_set]
        return f"{self.name}({', '.join(shown)})" if shown else self.name


def whole_matrices(groups: Sequence[Group]) -> tuple[str, ...]:
    """The matrices in no group, which every token reads whole."""
    return tuple(matrix for matrix in MATRICES if not any(matrix in group.matrices for group in groups))
