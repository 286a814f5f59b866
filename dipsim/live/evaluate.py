"""Perplexity and speed from one and the same run of a real model, under a policy, in the closed loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dipsim.files import InputError
from dipsim.live.models import LoadedModel
from dipsim.live.sparse import LiveActivations, as_numpy, sparsified
from dipsim.plan import FetchPlan, Setting, empty
from dipsim.policy import Policy, calibrated, checked_groups

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """Perplexity of a setting; `standard_error` is paired with the dense model over tokens (0 for dense itself)."""

    perplexity: float
    standard_error: float


def read_tokens(loaded: LoadedModel, text: Path, sequences: int, length: int) -> Tensor:
    """The first `sequences` x `length` tokens of a UTF-8 text, tokenised as one stream without special tokens.

    Raises InputError if the file is no text, or too short.
    """
    try:
        content = text.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{text}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{text}: is not UTF-8 text; convert it first") from None
    ids = loaded.tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
    wanted = sequences * length
    if len(ids) < wanted:
        raise InputError(
            f"{text}: has {len(ids)} tokens; {sequences} x {length} are wanted, so give a longer text or ask for less"
        )
    return torch.tensor(ids[:wanted], device=loaded.model.device).reshape(sequences, length)


def measure(
    loaded: LoadedModel, ids: Tensor, settings: Sequence[Setting], limits: Sequence[dict[str, float]] = ()
) -> tuple[Floats, list[FetchPlan]]:
    """Negative log-likelihoods [S, T - 1] of tokens [S, T], and the plan of each setting.

    All settings must be of one policy; they share one pass. Raises InputError if a setting cannot work.
    """
    sequences, length = ids.shape
    starts = tuple(range(0, sequences * length, length))
    plans = [empty(loaded.shape, setting, sequences * length, starts) for setting in settings]
    with torch.inference_mode(), sparsified(loaded.mlps, plans, limits):
        losses = nll(loaded, ids)
    return losses, plans


def nll(loaded: LoadedModel, ids: Tensor) -> Floats:
    """Negative log-likelihood [S, T - 1] of every token but a sequence's first, in nats."""
    hidden = loaded.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    head = loaded.model.get_output_embeddings()
    losses = []
    for states, targets in zip(hidden, ids, strict=True):  # one sequence's logits at a time
        logits = head(states[:-1])
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses.append(torch.nn.functional.cross_entropy(logits, targets[1:], reduction="none"))
    return torch.stack(losses).double().cpu().numpy()


def quality(losses: Floats, dense: Floats) -> Quality:
    """Perplexity exp(mean loss), and its standard error from the differences to the dense model's losses."""
    perplexity = float(np.exp(losses.mean()))
    difference = (losses - dense).ravel()
    return Quality(perplexity, float(perplexity * difference.std(ddof=1) / np.sqrt(difference.size)))


def calibrate(loaded: LoadedModel, ids: Tensor, policy: Policy) -> list[dict[str, float]]:
    """Per layer, the limits of the policy's threshold groups, from the dense model's activations on tokens [S, T]."""
    groups = [group for group in checked_groups(policy, loaded.shape) if group.threshold]
    if not groups:
        return []
    limits: list[dict[str, float]] = [{} for _ in loaded.mlps]

    def watch(layer: int) -> Callable[[torch.nn.Module, tuple[Tensor]], None]:
        def hook(_: torch.nn.Module, inputs: tuple[Tensor]) -> None:
            acts = LiveActivations(loaded.mlps[layer], inputs[0], layer)
            for group in groups:
                limits[layer][group.name] = calibrated(as_numpy(policy.scores(group, acts)), group.k)

        return hook

    handles = [mlp.module.register_forward_pre_hook(watch(layer)) for layer, mlp in enumerate(loaded.mlps)]
    try:
        with torch.inference_mode():
            loaded.model.base_model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return limits
