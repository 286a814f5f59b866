"""Measures perplexity and speed in the closed loop: both come from the same run of a real model under a policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.live.experts import check_copies
from dipsim.live.models import LoadedModel
from dipsim.live.perplexity import calibrate, measure, nll, quality
from dipsim.planning.fetch_plan import Setting
from dipsim.results.quality import Measured, bits_of, memory_of, mlp_fraction, parameters
from dipsim.results.result import Result
from dipsim.sparsity.policy import Policy
from dipsim.sparsity.selection import checked_groups, sees_memory
from dipsim.study.experiment import Experiment
from dipsim.study.grid import grid
from dipsim.timing.device import Device
from dipsim.timing.recurrence import timeline
from dipsim.workload.shape import ModelShape

SCALED_LOGITS = ("logits_scaling", "logit_scale", "final_logit_softcapping")


def evaluate(
    loaded: LoadedModel,
    ids: Tensor,
    experiment: Experiment,
    calibration: Tensor | None = None,
    progress: Progress = silent,
) -> list[tuple[Experiment, Result]]:
    """Evaluate every policy at every point of an experiment's grid, on tokens [S, T].

    A policy needs one pass of the model for all points; one whose masks depend on what is in memory, a pass for each
    setting of it. `calibration` [S, T] are the tokens for the limits of threshold policies, by default those evaluated.
    Raises InputError if a point cannot work.
    """
    if experiment.tokens is not None:
        raise InputError("tokens: an evaluation takes its tokens from the text; remove it (see --sequences, --length)")
    if any(key.startswith("bits.") for key in experiment.sweep):
        raise InputError("sweep: bits: an evaluation computes with the weights of one file; give its bits, not several")
    scaled = [name for name in SCALED_LOGITS if getattr(loaded.model.config, name, None) not in (None, 1, 1.0)]
    if scaled:
        raise InputError(f"{loaded.shape.name}: {scaled[0]}: logits are scaled after lm_head, which is not supported")
    prepared = [(point, *_settings(point, loaded.shape, ids.shape[1])) for point in grid(experiment)]
    if any(point.needs_clock(device) for point, device, _ in prepared):
        raise InputError(
            "prefetch, speculate, streams, contention, tiers and units are for `run` and `sweep`; leave them out to "
            "evaluate"
        )
    passes = _passes(prepared, loaded.shape)
    with torch.inference_mode():
        dense = nll(loaded, ids)
    results: dict[tuple[int, str], Result] = {}
    for done, (policy, uses) in enumerate(passes):
        settings = [setting for i, (_, setting) in enumerate(uses) if setting not in [s for _, s in uses[:i]]]
        limits = calibrate(loaded, ids if calibration is None else calibration, policy)
        losses, plans = measure(loaded, ids, settings, limits)
        found = quality(losses, dense)
        for index, setting in uses:
            point, device, _ = prepared[index]
            plan = plans[settings.index(setting)]
            times = timeline(plan, device, point.timing)
            results[index, policy.label] = Result(plan, device, times, found.perplexity, found.standard_error)
        progress("evaluating", done + 1, len(passes))
    return [(point, results[i, s.policy.label]) for i, (point, _, settings) in enumerate(prepared) for s in settings]


def _settings(point: Experiment, shape: ModelShape, length: int) -> tuple[Device, list[Setting]]:
    """The device of a point, and what to plan on it for sequences of `length`."""
    device, policies = point.load_hardware(shape), point.load_policies()
    settings = point.settings(policies, shape, length, device)
    if point.hardware:  # a name of its own, so that rows of different hardware are never compared
        changed = ", ".join(f"{field}={value}" for field, value in point.hardware.items())
        device = device.replace(name=f"{device.name} ({changed})")
    return device, settings


def _passes(prepared: Sequence[Any], shape: ModelShape) -> list[tuple[Policy, list[tuple[int, Setting]]]]:
    """The passes of the model that are needed, each with the points that it serves and their settings."""
    passes: dict[Any, tuple[Policy, list[tuple[int, Setting]]]] = {}
    for index, (_, _, settings) in enumerate(prepared):
        for setting in settings:
            policy, groups = setting.policy, checked_groups(setting.policy, shape)
            check_copies(policy, groups)
            together = not sees_memory(policy, groups)
            key = policy.label if together else (policy.label, str(setting.options))
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
        tokens=len(plan.sequence_starts) * length,
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
        memory=memory_of(plan),
        bits=bits_of(plan.shape),
    )
