"""Policy: which parts of the MLP's matrices a token reads. A plugin is its formulas; selection happens here.

A plugin is a Python file with one subclass of `Policy`, shipped in `policies/` or the user's own `./mine.py`.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dipsim import assets
from dipsim.eviction import first
from dipsim.files import InputError, Strict, parse
from dipsim.model import MATRICES, ModelShape

Fraction = Annotated[float, Field(strict=True, gt=0, le=1)]
Axis = Literal["input", "neuron"]
PREDICTOR_BITS = 16  # of the weights that a policy brings along (reference section 3)
ATTENTION, WHOLE, LM_HEAD = RESERVED = ("attention", "whole", "lm_head")  # steps of a token that are no group
Result = TypeVar("Result")


@dataclass(frozen=True)
class Group:
    """Matrices that share one mask: `k` columns along `axis` (d inputs or m neurons) are kept for each token.

    With `threshold` they are kept on average: what counts is a score above a limit, one per layer, calibrated so.
    """

    name: str
    matrices: tuple[str, ...]
    axis: Axis
    k: int
    threshold: bool = False


class Policy(Strict):
    """Base of all policies; the fields of a subclass are its parameters.

    Matrices in no group are read whole. A subclass that overrides `rerank` or `select` is cache-aware.
    """

    name: ClassVar[str] = ""

    def groups(self, shape: ModelShape) -> Sequence[Group]:
        """The groups, in the order in which a token computes them. None: everything is read whole."""
        return ()

    def scores(self, group: Group, acts: Any) -> Any:
        """Importance of each column [..., N] from the layer's activations; the k largest are kept.

        `acts` has `mlp_input`, `gate_proj`, `up_proj`, `gate` (activated) and `glu`; leading axes are tokens.
        """
        raise NotImplementedError(f"{type(self).__name__} has groups and must define scores")

    def rerank(self, scores: Any, resident: Any) -> Any:
        """Scores [N] of one token, changed by who is resident [N] (bool). Only the ranking is affected."""
        return scores

    def select(self, group: Group, scores: Any, resident: Any) -> Any:
        """Mask [N] of one token from its scores [N] and who is resident [N].

        The k best after `rerank`; to be overridden only where selection is something else.
        """
        return top_k(self.rerank(scores, resident), group.k)

    def at(self, position: int) -> Self:
        """The policy as it is at the `position`-th token of a sequence: always the same, unless it warms up."""
        return self

    def static_bytes(self, shape: ModelShape) -> float:
        """Bytes that the policy itself keeps in DRAM and reads for every token (a predictor's weights)."""
        return 0.0

    @property
    def cache_aware(self) -> bool:
        return type(self).rerank is not Policy.rerank or type(self).select is not Policy.select

    @property
    def shipped(self) -> bool:
        return type(self).__module__.startswith("dipsim.policies.")

    @property
    def label(self) -> str:
        """Name and parameters, e.g. `dip-ca(keep=0.75, gamma=0.5)`: those that were set, in the order declared."""
        shown = [f"{key}={getattr(self, key)!r}" for key in type(self).model_fields if key in self.model_fields_set]
        return f"{self.name}({', '.join(shown)})" if shown else self.name


def top_k(scores: Any, k: int) -> Any:
    """Mask [..., N] of the k largest scores of each row [..., N]; among equals the lowest index first.

    Of a torch tensor where it is.
    """
    if hasattr(scores, "topk"):
        from dipsim.live import tensors  # only where there is torch already

        return tensors.top_k(scores, k)
    size = scores.shape[-1]
    if k >= size or k <= 0:
        return np.full(scores.shape, k > 0)
    mask = np.empty(scores.shape, dtype=bool)
    for row, best in zip(scores.reshape(-1, size), mask.reshape(-1, size), strict=True):
        limit = np.partition(row, size - k)[size - k]
        if np.count_nonzero(np.greater_equal(row, limit, out=best)) > k:  # equals at the limit: only as many as fit
            np.greater(row, limit, out=best)
            best |= first(row == limit, k - int(np.count_nonzero(best)))
    return mask


def calibrated(scores: NDArray[Any], k: int) -> float:
    """The limit that keeps k columns on average over the tokens of scores [T, N]."""
    return float(np.quantile(scores, 1 - k / scores.shape[-1])) if k else float("inf")


def checked_groups(policy: Policy, shape: ModelShape) -> tuple[Group, ...]:
    """The policy's groups for this model. Raises InputError if they cannot be read that way."""
    groups = guarded(policy, "groups", lambda: tuple(policy.groups(shape)))
    seen: list[str] = []
    for group in groups:
        if not isinstance(group, Group) or not isinstance(group.matrices, tuple) or not group.matrices:
            raise InputError(f"policy {policy.label}: groups: {group!r} is not a Group of a tuple of matrices")
        if group.name in RESERVED:
            raise InputError(f"policy {policy.label}: group {group.name}: that name is taken; choose another")
        seen += group.matrices
        size = shape.axis_size(group.axis)
        for matrix in group.matrices:
            shape.unit_length(matrix, group.axis)
        if not isinstance(group.k, int) or not 0 <= group.k <= size:
            where = f"policy {policy.label}: group {group.name}"
            raise InputError(f"{where}: k must be a whole number from 0 to {size} (got {group.k!r})")
    if len(set(seen)) < len(seen) or len({group.name for group in groups}) < len(groups):
        raise InputError(f"policy {policy.label}: groups: a matrix or a name appears twice; put each in one group")
    return groups


def whole_matrices(groups: Sequence[Group]) -> tuple[str, ...]:
    """The matrices in no group, which every token reads whole."""
    return tuple(matrix for matrix in MATRICES if not any(matrix in group.matrices for group in groups))


def guarded(policy: Policy, method: str, call: Callable[[], Result]) -> Result:
    """The result of a plugin's method; what goes wrong inside it becomes one line that names the plugin."""
    try:
        return call()
    except (InputError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            raise
        text = " ".join(str(error).split())
        raise InputError(f"policy {policy.label}: {method} failed: {type(error).__name__}: {text}") from error


def wrong_scores(policy: Policy, group: Group, expected: Sequence[int], got: str) -> InputError:
    """What to say of scores that are not numbers of the `expected` shape without NaN."""
    return InputError(
        f"policy {policy.label}: scores of group {group.name} must be numbers {list(expected)} without NaN (got {got})"
    )


def wrong_ranking(policy: Policy, group: Group, must: str) -> InputError:
    """What to say of a `rerank` that does not do what it must."""
    return InputError(f"policy {policy.label}: group {group.name}: rerank must {must}")


def load_policy(name_or_path: str | Path, /, **parameters: Any) -> Policy:
    """A shipped policy by name or a plugin by path, with its parameters.

    Raises InputError for an unknown policy, a file that cannot be imported or holds no single Policy, and for
    parameters that it does not have or that are out of range.
    """
    cls = policy_class(name_or_path)
    return parse(cls, parameters, f"policy {cls.name}")


def policy_class(name_or_path: str | Path) -> type[Policy]:
    """The class of a shipped policy by name or of a plugin by path. Raises InputError as `load_policy`."""
    path = assets.find("policies", name_or_path)
    module = _import(path)
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Policy) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = ", ".join(sorted(cls.__name__ for cls in found)) or "none"
        raise InputError(f"{path}: must define exactly one subclass of dipsim.Policy (found {names})")
    cls = found[0]
    cls.name = assets.stem(path.name)
    return cls


def _import(path: Path) -> ModuleType:
    """Run a plugin file as a module; shipped ones as `dipsim.policies.NAME`, so that plugins can build on them."""
    shipped = path.resolve().parent == assets.directory("policies")
    name = f"{'dipsim.policies' if shipped else 'dipsim_plugins'}.{path.stem}"
    if shipped and name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: is not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        text = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be imported: {type(error).__name__}: {text}{line}") from error
    return module


if "dipsim.policies" not in sys.modules:  # in a checkout the folder lies beside the package, not inside it
    _package = ModuleType("dipsim.policies", "The shipped policies, one plugin a file.")
    _package.__path__ = [str(assets.directory("policies"))]
    sys.modules["dipsim.policies"] = _package
