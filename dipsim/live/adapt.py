"""LoRA adapters that win back what a policy costs: the sparse model learns the dense model's predictions.

They are trained by distillation. The loss is the Kullback-Leibler divergence of the sparsified model's next-token
distribution from the dense one's, on any text. The adapters sit on gate_proj, up_proj and down_proj (paper section 6).
The masks come from the policy with an empty cache, so a cache-aware policy is trained as the plain one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.gpu.tensors import tensor_masks
from dipsim.live.closed_loop import forward, replaced
from dipsim.live.models import LoadedModel, quiet
from dipsim.live.swiglu import check_dense
from dipsim.sparsity.policy import Policy
from dipsim.sparsity.selection import checked_groups


def adapt(
    loaded: LoadedModel,
    ids: Tensor,
    policy: Policy,
    *,
    rank: int = 32,
    steps: int = 800,
    batch: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[Any, list[float]]:
    """Train adapters on token sequences [S, T]; return the peft model and the loss of every step, in nats.

    Raises InputError for settings that make no sense, and for a mixture of experts.
    """
    check_dense(loaded.shape, "adapt")
    check_positive("rank", rank)
    how = Training(steps, batch, learning_rate, seed)
    names = [name for mlp in loaded.mlps[:1] for name in mlp.layout]
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, task_type="CAUSAL_LM")
    with quiet(), torch.random.fork_rng():  # peft draws from the global generator
        torch.manual_seed(seed)
        model: Any = peft.get_peft_model(loaded.model, config)
    model.peft_config["default"].base_model_name_or_path = loaded.shape.name  # not a path of this machine
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()  # small, and their updates are too fine for bfloat16

    def dense(tokens: Tensor) -> Tensor:
        with model.disable_adapter():
            return log_probabilities(model, tokens)

    def sparse(tokens: Tensor) -> Tensor:
        with replaced(loaded.mlps, _pruned(loaded, policy)):
            return log_probabilities(model, tokens)

    return model, distil(weights, dense, sparse, ids, how, progress)


@dataclass(frozen=True)
class Training:
    """Steps of `batch` stretches of text at random.

    The learning rate warms up over 5 % of the steps and falls as a cosine. Raises InputError for settings that make no
    sense.
    """

    steps: int
    batch: int
    learning_rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("batch", self.batch), ("learning rate", self.learning_rate)):
            check_positive(name, value)

    def rate(self, step: int) -> float:
        """The learning rate at a step, in parts of its peak."""
        warmup = max(1, self.steps // 20)
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def check_positive(name: str, value: float) -> None:
    """Raise InputError unless a number of the training is more than 0."""
    if not 0 < value < math.inf:
        raise InputError(f"{name}: must be more than 0 (got {value})")


def log_probabilities(model: Any, tokens: Tensor) -> Tensor:
    """Of every next token, [S, T, vocabulary]."""
    found: Tensor = model(input_ids=tokens, use_cache=False).logits.float().log_softmax(dim=-1)
    return found


def distil(
    weights: Sequence[Tensor],
    dense: Callable[[Tensor], Tensor],
    sparse: Callable[[Tensor], Tensor],
    ids: Tensor,
    how: Training,
    progress: Progress = silent,
) -> list[float]:
    """Train weights so that `sparse` predicts what `dense` does, log-probabilities of tokens [S, T].

    Returns the loss of every step, the Kullback-Leibler divergence in nats. Stretches are of T tokens of `ids` [S, T].
    """
    optimizer = torch.optim.AdamW(weights, lr=how.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, how.rate)
    stream, length = ids.flatten(), ids.shape[1]
    order = torch.Generator().manual_seed(how.seed)
    losses = []
    for step in range(how.steps):
        starts = torch.randint(len(stream) - length + 1, (how.batch,), generator=order).tolist()
        tokens = torch.stack([stream[start : start + length] for start in starts])
        with torch.no_grad():
            wanted = dense(tokens)
        found = sparse(tokens)
        loss = (wanted.exp() * (wanted - found)).sum(dim=-1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        progress("training", step + 1, how.steps)
    return losses


def _pruned(loaded: LoadedModel, policy: Policy) -> list[Callable[[Tensor], Tensor]]:
    """Each MLP's forward under the policy's masks without a cache, differentiable in all but the masks."""
    groups = checked_groups(policy, loaded.shape)
    return [
        partial(forward, mlp, layer=layer, policy=policy, groups=groups, masks=tensor_masks)
        for layer, mlp in enumerate(loaded.mlps)
    ]


def write_adapter(model: Any, out: Path) -> None:
    """Write the adapters as a standard peft folder. Raises InputError if it cannot be written."""
    try:
        with quiet():
            model.save_pretrained(str(out), safe_serialization=True, save_embedding_layers=False)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None
