"""Perplexity and speed from one and the same run of a real model, under a policy, in the closed loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dipsim import bounds
from dipsim.device import Device
from dipsim.experiment import Experiment, Progress, dram_bytes
from dipsim.files import InputError, read_text
from dipsim.live.models import LoadedModel
from dipsim.live.sparse import LiveActivations, as_numpy, sparsified
from dipsim.model import ModelShape
from dipsim.plan import FetchPlan, Setting, empty
from dipsim.policy import Policy, calibrated, checked_groups
from dipsim.quality import Measured, mlp_fraction, parameters
from dipsim.result import Result
from dipsim.sweep import grid

Floats = NDArray[np.float64]
SCALED_LOGITS = ("logits_scaling", "logit_scale", "final_logit_softcapping")


@dataclass(frozen=True)
class Quality:
    """Perplexity of a setting; `standard_error` is paired with the dense model over tokens (0 for dense itself)."""

    perplexity: float
    standard_error: float


def evaluate(
    loaded: LoadedModel,
    ids: Tensor,
    experiment: Experiment,
    calibration: Tensor | None = None,
    progress: Progress = lambda *_: None,
) -> list[tuple[Experiment, Result]]:
    """Every policy at every point of an experiment's grid, on tokens [S, T]: perplexity and speed of the same masks.

    A cache-blind policy needs one pass of the model for all points, a cache-aware one a pass for each DRAM size and
    eviction. `calibration` [S, T]: tokens for the limits of threshold policies, by default those evaluated. Raises
    InputError if a point cannot work.
    """
    if experiment.tokens is not None:
        raise InputError("tokens: an evaluation takes its tokens from the text; remove it (see --sequences, --length)")
    scaled = [name for name in SCALED_LOGITS if getattr(loaded.model.config, name, None) not in (None, 1, 1.0)]
    if scaled:
        raise InputError(f"{loaded.shape.name}: {scaled[0]}: logits are scaled after lm_head, which is not supported")
    points = grid(experiment)
    prepared = [(point, *hardware(point, loaded.shape, ids.shape[1])) for point in points]
    with torch.inference_mode():
        dense = nll(loaded, ids)
    passes = _passes(prepared)
    results: dict[tuple[int, str], Result] = {}
    for done, (policy, uses) in enumerate(passes):
        settings = [setting for i, (_, setting) in enumerate(uses) if setting not in [s for _, s in uses[:i]]]
        limits = calibrate(loaded, ids if calibration is None else calibration, policy)
        losses, plans = measure(loaded, ids, settings, limits)
        found = quality(losses, dense)
        for index, setting in uses:
            point, device, _, _ = prepared[index]
            plan = plans[settings.index(setting)]
            spans = bounds.timeline(plan, device, point.timing)
            results[index, policy.label] = Result(plan, device, spans, found.perplexity, found.standard_error)
        progress("evaluating", done + 1, len(passes))
    return [(point, results[i, p.label]) for i, (point, _, _, policies) in enumerate(prepared) for p in policies]


def hardware(point: Experiment, shape: ModelShape, length: int) -> tuple[Device, float, list[Policy]]:
    """The device of a point, its DRAM in bytes for sequences of `length`, and its policies."""
    device, policies = point.hardware_and_policies()
    if point.hardware:  # a name of its own, so that rows of different hardware are never compared
        changed = ", ".join(f"{field}={value}" for field, value in point.hardware.items())
        device = device.replace(name=f"{device.name} ({changed})")
    return device, dram_bytes(point, shape, length, device), policies


def _passes(prepared: Sequence[Any]) -> list[tuple[Policy, list[tuple[int, Setting]]]]:
    """The passes of the model that are needed, each with the points that it serves and their settings."""
    passes: dict[Any, tuple[Policy, list[tuple[int, Setting]]]] = {}
    for index, (point, _, size, policies) in enumerate(prepared):
        for policy in policies:
            setting = Setting(policy, size, point.eviction, point.prompt, point.stream_static)
            cache = (size, point.eviction, point.prompt, point.stream_static)
            key = (policy.label, cache if policy.cache_aware else None)
            passes.setdefault(key, (policy, []))[1].append((index, setting))
    return list(passes.values())


def row(result: Result, length: int, text: str, model: str, adapter: str = "") -> Measured:
    """A result as a row of the quality table."""
    setting, plan = result.plan.setting, result.plan
    assert result.perplexity is not None
    assert result.standard_error is not None
    summary = result.summary()
    return Measured(
        policy=setting.policy.name,
        parameters=parameters(setting),
        mlp_fraction=mlp_fraction(plan),
        eviction=setting.eviction,
        tokens=plan.tokens,
        length=length,
        perplexity=round(result.perplexity, 4),
        standard_error=round(result.standard_error, 4),
        hit_rate=round(result.hit_rate, 6),
        mlp_fraction_read=round(summary["mlp_fraction_read"], 6),
        device=result.device.name,
        timing=result.timeline.timing,
        tokens_per_s=round(result.tokens_per_s, 4),
        text=text,
        model=model,
        adapter=adapter,
    )


def read_tokens(loaded: LoadedModel, text: Path, sequences: int | None, length: int) -> Tensor:
    """The first `sequences` x `length` tokens of a UTF-8 text, tokenised as one stream without special tokens.

    Without `sequences`, as many as there are. Raises InputError if the file is no text, or too short.
    """
    for name, value in (("sequences", 1 if sequences is None else sequences), ("length", length - 1)):
        if value < 1:
            raise InputError(f"{name}: too few; at least 1 sequence of 2 tokens is needed")
    ids = loaded.tokenizer(read_text(text), add_special_tokens=False, verbose=False)["input_ids"]
    count = len(ids) // length if sequences is None else sequences
    wanted = max(count, 1) * length
    if len(ids) < wanted:
        raise InputError(
            f"{text}: has {len(ids)} tokens; {max(count, 1)} x {length} are wanted; give a longer text or ask for less"
        )
    limit = getattr(loaded.model.config, "max_position_embeddings", None)
    if limit and length > limit:
        raise InputError(f"length: {length} is more than the {limit} positions that {loaded.shape.name} takes")
    return torch.tensor(ids[:wanted], device=loaded.model.device).reshape(-1, length)


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
