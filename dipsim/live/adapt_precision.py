"""Trains what is added to a model's nested weights, so that it predicts better at the levels that a policy reads.

To each matrix a product of two narrow factors is added, whatever the levels of its rows or columns (LoRA,
arXiv 2106.09685). It cannot be merged into the codes: it stays in DRAM beside them, and its bytes are counted.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dipsim.basics.files import sha256
from dipsim.basics.progress import Progress, silent
from dipsim.live.adapt import Training, check_positive, distil, log_probabilities
from dipsim.live.closed_loop import base_levels, forward_at_levels, levels_worth, replaced
from dipsim.live.codes import calibration_of, nested_weights
from dipsim.live.leveled import Leveled
from dipsim.live.models import LoadedModel
from dipsim.live.requests import setting_with_levels
from dipsim.live.sensitivity import frozen
from dipsim.live.swiglu import check_dense
from dipsim.planning.builder import PlanBuilder
from dipsim.sparsity.calibrated import ADDED, Trained
from dipsim.sparsity.policy import Group
from dipsim.study.experiment import Experiment


def adapt_precision(
    loaded: LoadedModel, ids: Tensor, text: Path, experiment: Experiment, out: Path, *, rank: int, how: Training,
    progress: Progress = silent,
) -> list[float]:  # fmt: skip
    """Train on tokens [S, T] of a text for the experiment's only policy with levels.

    Its calibration is written to `out` with what is added.

    The policy chooses as it does in `evaluate`, but for what reads bring along. What an earlier training added is
    trained anew. Returns the loss of every step in nats. Raises InputError for settings that make no sense.
    """
    check_dense(loaded.shape, "adapt")
    check_positive("rank", rank)
    setting = setting_with_levels(loaded.shape, experiment, ids.shape[1])
    calibrated = calibration_of(loaded, setting.policy)
    nested = nested_weights(loaded, setting.policy)
    builder = PlanBuilder(loaded.shape, setting, ids.shape[1], (0,))
    precision = builder.precision
    assert precision is not None
    generator = torch.Generator().manual_seed(how.seed)
    layers: list[dict[str, Leveled]] = []
    for matrices in nested:
        layers.append({name: _with_factors(weights, rank, generator) for name, weights in matrices.items()})
    factors = [part for matrices in layers for weights in matrices.values() for part in weights.added or ()]

    def choose(layer: int, group: Group, scores: Tensor) -> Tensor:
        return levels_worth(precision, group, layer, scores)

    forwards = [
        partial(
            forward_at_levels, mlp, layer=layer, policy=setting.policy, groups=builder.groups, weights=layers[layer],
            base=base_levels(precision, layer, ids.device), choose=partial(choose, layer),
        )
        for layer, mlp in enumerate(loaded.mlps)
    ]  # fmt: skip

    def sparse(tokens: Tensor) -> Tensor:
        with replaced(loaded.mlps, forwards):
            return log_probabilities(loaded.model, tokens)

    with frozen(loaded.model):
        losses = distil(factors, partial(log_probabilities, loaded.model), sparse, ids, how, progress)
    tensors = dict(calibrated.tensors)
    for layer, matrices in enumerate(layers):
        for matrix, weights in matrices.items():
            for name, part in zip(ADDED, weights.added or (), strict=True):
                tensors[f"layers.{layer}.{matrix}.{name}"] = part.detach().half().cpu().numpy()
    trained = Trained(
        text=text.name,
        text_sha256=sha256(text),
        policy=setting.policy.label,
        dram_bytes=setting.dram_bytes,
        rank=rank,
        steps=how.steps,
        batch=how.batch,
        length=ids.shape[1],
    )
    replace(
        calibrated, path=out, tensors=tensors, origin=calibrated.origin.model_copy(update={"trained": trained})
    ).write()
    return losses


def _with_factors(weights: Leveled, rank: int, generator: torch.Generator) -> Leveled:
    """The same weights with factors to train, in float32: one of 0, so that nothing is added at first."""
    exact = weights.each[-1]
    assert exact is not None
    rows, inputs = exact.shape
    into = torch.randn(rank, inputs, generator=generator) / inputs**0.5
    out = torch.zeros(rows, rank)
    return Leveled(weights.each, (out.to(exact.device).requires_grad_(), into.to(exact.device).requires_grad_()))
