"""How much a model's loss depends on each column: the mean square of the gradient, one for each input and neuron.

Leaving out a column of value v at one token changes the loss of the text, to second order and with the Fisher
information for its curvature, by v^2 s / 2 on average, where s is the column's sensitivity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from dipsim.basics.files import write
from dipsim.basics.progress import Progress, silent
from dipsim.live.closed_loop import LiveActivations, replaced
from dipsim.live.models import LoadedModel
from dipsim.live.swiglu import Mlp, check_dense

BATCH = 4  # sequences whose graph is held at a time


def learn_sensitivity(loaded: LoadedModel, ids: Tensor, out: Path, progress: Progress = silent) -> None:
    """Write E[(d loss / d value)^2] of each layer's MLP inputs [d] and neurons [m] over tokens [S, T] of text.

    The loss is the sum over a sequence of the negative log-likelihoods of its tokens. The tensors are
    `layers.{i}.input` and `layers.{i}.neuron`, float32. Raises InputError for a mixture of experts.
    """
    check_dense(loaded.shape, "learn-sensitivity")
    sums: dict[str, Tensor] = {}
    with frozen(loaded.model):
        for begin in range(0, len(ids), BATCH):
            for name, gradient in _gradients(loaded, ids[begin : begin + BATCH]).items():
                square = gradient.double().square().sum(dim=(0, 1))
                sums[name] = sums[name] + square if name in sums else square
            progress("learning sensitivities", min(begin + BATCH, len(ids)), len(ids))
    means = {name: (total / ids.numel()).float().cpu().numpy().astype(np.float32) for name, total in sums.items()}
    write(out, lambda temporary: save_file(means, temporary))


def _gradients(loaded: LoadedModel, ids: Tensor) -> dict[str, Tensor]:
    """The gradient of the loss of tokens [S, T] by every MLP input [S, T, d] and neuron [S, T, m]."""
    seen: dict[str, Tensor] = {}

    def watched(mlp: Mlp, layer: int) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            acts = LiveActivations(mlp, x, layer)
            seen[f"layers.{layer}.input"], seen[f"layers.{layer}.neuron"] = x, acts.glu
            for values in (x, acts.glu):
                values.retain_grad()
            return mlp.project("down_proj", acts.glu)

        return forward

    with replaced(loaded.mlps, [watched(mlp, i) for i, mlp in enumerate(loaded.mlps)]):
        logits = next_logits(loaded, ids)
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: values.grad for name, values in seen.items()}
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Inside, gradients are of values only, not of the model's parameters."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def next_logits(loaded: LoadedModel, ids: Tensor) -> Tensor:
    """The logits [S * (T - 1), vocabulary] of what follows tokens [S, T] but the last of each, with their graph."""
    with torch.enable_grad():
        embedded = loaded.model.get_input_embeddings()(ids).detach().requires_grad_()
        logits: Tensor = loaded.model(inputs_embeds=embedded, use_cache=False).logits[:, :-1]
        return logits.flatten(0, 1).float()
