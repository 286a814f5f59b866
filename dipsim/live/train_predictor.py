"""Trains the networks of the `predictor` policy on a recorded trace: they tell which neurons matter from the input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from dipsim.basics.errors import InputError
from dipsim.basics.files import write
from dipsim.basics.progress import Progress, silent
from dipsim.live.swiglu import check_dense
from dipsim.sparsity.ranking import top_k
from dipsim.workload.trace import Trace


def train_predictor(
    trace: Trace,
    out: Path,
    *,
    fraction: float = 0.5,
    rank: int = 64,
    steps: int = 200,
    seed: int = 0,
    progress: Progress = silent,
) -> float:
    """Train relu(x A) B, A [d, rank], B [rank, m], for each layer to tell the `fraction` of neurons of largest |glu|.

    The loss is logistic, the optimizer Adam on all tokens at once. It writes float16 tensors `layers.{i}.A` and `.B`,
    and returns the share of those neurons that the networks find among as many guesses, on the tokens that they were
    trained on. Raises InputError for settings that make no sense, for a mixture of experts and if `out` cannot be
    written.
    """
    check_dense(trace.shape, "train-predictor")
    if not 0 < fraction < 1 or rank < 1 or steps < 1:
        raise InputError("train-predictor: fraction must be between 0 and 1, rank and steps at least 1")
    generator = torch.Generator().manual_seed(seed)
    shape, tensors, found = trace.shape, {}, []
    k = int(fraction * shape.intermediate_size)
    for layer in range(shape.num_hidden_layers):
        acts = trace.layer(layer)
        wanted = top_k(np.abs(acts.glu), k)
        x, target = torch.from_numpy(np.array(acts.mlp_input)), torch.from_numpy(wanted).float()
        a = (
            torch.randn(shape.hidden_size, rank, generator=generator) / (x.std() * shape.hidden_size**0.5)
        ).requires_grad_()
        b = torch.zeros(rank, shape.intermediate_size).requires_grad_()
        optimizer = torch.optim.Adam([a, b], lr=1e-2)
        for _ in range(steps):
            loss = torch.nn.functional.binary_cross_entropy_with_logits((x @ a).relu() @ b, target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            guess = top_k(((x @ a).relu() @ b).numpy(), k)
        found.append((guess & wanted).sum() / wanted.sum())
        for name, weight in (("A", a), ("B", b)):
            tensors[f"layers.{layer}.{name}"] = weight.detach().half().numpy()
        progress("training layers", layer + 1, shape.num_hidden_layers)
    write(out, lambda temporary: save_file(tensors, temporary))
    return float(np.mean(found))
