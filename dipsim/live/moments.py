"""What a text tells of each MLP: second moments of its input and of the loss's gradient, and which tokens matter more.

Gradients are of the loss of the text's own next tokens, and of others which the model draws. Their moments are the
empirical Fisher information and Fisher information, the curvature of the divergence from the dense model; both
together did better than each (docs/background/precision.md).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.live.closed_loop import LiveActivations, replaced
from dipsim.live.models import LoadedModel
from dipsim.live.sensitivity import frozen, next_logits
from dipsim.live.swiglu import Mlp

BATCH = 4  # sequences whose graph is held at a time
DRAWS = 2  # of all next tokens, beside the text's own
RIDGE = 0.2  # on weights of standardised inputs: the best on held-out sequences of the validation text
STEPS = 80
LARGE = 20.0  # a logarithm that no fit comes near
FLAT = 1e-6  # of the largest spread of an input


@dataclass(frozen=True)
class Moments:
    """What was seen in one layer.

    `inputs` is E[x x'] of what the MLP sees and `gradients` E[g g'] of the gradient at what it gives, both [d, d].
    `token_weight` [d + 1] has t and t0 of exp(t'x + t0), what a token's g'g is expected to be in parts of its mean.
    """

    inputs: Tensor
    gradients: Tensor
    token_weight: Tensor


def moments(loaded: LoadedModel, ids: Tensor, progress: Progress = silent) -> list[Moments]:
    """The moments of every layer over tokens [S, T]."""
    size, layers = loaded.shape.hidden_size, range(loaded.shape.num_hidden_layers)
    gradients = [ids.new_zeros(size, size, dtype=torch.float32) for _ in layers]
    squares = [ids.new_zeros(*ids.shape, dtype=torch.float32) for _ in layers]
    inputs: list[list[Tensor]] = [[] for _ in layers]
    added: dict[int, Tensor] = {}

    def watched(mlp: Mlp, layer: int) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            inputs[layer].append(x.detach().flatten(0, 1).float())
            output = mlp.project("down_proj", LiveActivations(mlp, x, layer).glu)
            added[layer] = torch.zeros_like(output, requires_grad=True)
            return output + added[layer]

        return forward

    with frozen(loaded.model), replaced(loaded.mlps, [watched(mlp, i) for i, mlp in enumerate(loaded.mlps)]):
        for begin in range(0, len(ids), BATCH):
            here = slice(begin, begin + BATCH)
            logits = next_logits(loaded, ids[here])
            labels = [ids[here, 1:].flatten(), *_drawn(logits.detach(), begin)]
            for each in labels:
                loss = torch.nn.functional.cross_entropy(logits, each, reduction="sum")
                found = torch.autograd.grad(loss, list(added.values()), retain_graph=True)
                for layer, gradient in zip(added, found, strict=True):
                    flat = gradient.flatten(0, 1).float()
                    gradients[layer] += flat.T @ flat / len(labels)
                    squares[layer][here] += gradient.float().square().sum(-1) / len(labels)
            progress("measuring moments", min(begin + BATCH, len(ids)), len(ids))
    count = ids.numel()
    return [
        Moments(x.T @ x / count, gradient / count, fit_token_weight(x, square.flatten()))
        for x, gradient, square in zip(map(torch.cat, inputs), gradients, squares, strict=True)
    ]


def _drawn(logits: Tensor, seed: int) -> Tensor:
    """Tokens drawn from logits [n, vocabulary], [draws, n]."""
    generator = torch.Generator(logits.device).manual_seed(seed)
    return torch.multinomial(logits.softmax(-1), DRAWS, replacement=True, generator=generator).T


def fit_token_weight(x: Tensor, squares: Tensor) -> Tensor:
    """The weights t and t0, [d + 1] in 16 bits, with which exp(t'x + t0) is nearest to squares [n] over their mean.

    It is a regression of the gamma distribution with a logarithmic link on x [n, d], each input standardised. The mean
    of exp(t'x + t0) over these tokens is 1, but for its rounding. Raises InputError if they are too few.
    """
    few = f"the weight of a token cannot be told from {len(x)} tokens; give a longer text"
    if len(x) < 2 or not squares.any():
        raise InputError(few)
    mean, spread = x.mean(0), x.std(0)
    spread = torch.where(spread > FLAT * spread.max(), spread, torch.inf)  # what never differs tells nothing
    inputs, wanted = (x - mean) / spread, squares / squares.mean()
    weights = x.new_zeros(x.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logs = (inputs @ weights[:-1] + weights[-1]).clamp(-LARGE, LARGE)
        found: Tensor = (wanted * (-logs).exp() + logs).mean() + RIDGE * weights[:-1].square().sum()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    with torch.enable_grad(), suppress(RuntimeError):  # a step beyond float32, where there is nothing to fit
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    each = (weights.detach()[:-1] / spread).half()
    found = torch.cat([each, -(x @ each.float()).exp().mean().log().half()[None]])
    if not found.isfinite().all():
        raise InputError(few)
    return found
