"""Records which levels of precision a policy requests of a real model: a trace that replays without the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dipsim.basics.errors import InputError
from dipsim.basics.files import sha256
from dipsim.live.closed_loop import sparsified
from dipsim.live.codes import nested_weights
from dipsim.live.models import LoadedModel
from dipsim.planning.builder import PlanBuilder
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.precision import has_levels, made_by
from dipsim.sparsity.selection import checked_groups
from dipsim.study.experiment import Experiment
from dipsim.workload.recorded import write_requests
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import Header


def record_requests(loaded: LoadedModel, ids: Tensor, text: Path, experiment: Experiment, out: Path) -> Header:
    """Write the levels that the experiment's only policy with levels requests at tokens [S, T] of a text.

    The policy decides what the model computes with, so its requests see its own errors. Raises InputError if there is
    not one such policy, if there is a sweep, or if the setting cannot work.
    """
    sequences, length = ids.shape
    setting = setting_with_levels(loaded.shape, experiment, length)
    starts = tuple(range(0, sequences * length, length))
    builder = PlanBuilder(loaded.shape, setting, ids.numel(), starts)
    weights = nested_weights(loaded, setting.policy)
    with torch.inference_mode(), sparsified(loaded.mlps, [builder], (), weights) as sparse:
        kept: list[dict[str, NDArray[np.uint8]]] = [{} for _ in sparse]
        for each, requests in zip(sparse, kept, strict=True):
            each.requests = requests
        loaded.model.base_model(input_ids=ids, use_cache=False)
    source = loaded.source | {
        "text": text.name,
        "text_sha256": sha256(text),
        "tokens": ids.numel(),
        "policy": setting.policy.label,
        "made_by": made_by(setting.policy),
        "device": experiment.device,
        "dram_bytes": setting.dram_bytes,
    }
    header = Header(model=loaded.shape, sequence_starts=starts, holds="requests", source=source)
    write_requests(out, header, kept)
    return header


def setting_with_levels(shape: ModelShape, experiment: Experiment, length: int) -> Setting:
    """The setting of an experiment's only policy with levels, for sequences of `length`.

    Raises InputError if there is not one such policy, or if there is a sweep.
    """
    policies = [each for each in experiment.load_policies() if has_levels(checked_groups(each, shape))]
    if len(policies) != 1 or experiment.sweep:
        raise InputError(
            f"policies: {len(policies)} have levels of precision{' and there is a sweep' if experiment.sweep else ''}; "
            "give one such policy at one size of DRAM"
        )
    (setting,) = experiment.settings(policies, shape, length, experiment.load_hardware(shape))
    return setting
