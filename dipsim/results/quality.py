"""The quality table: perplexities that were measured on a trace's model, each for one exact setting.

The table of a trace is `traces/NAME.quality.csv` beside it; `evaluate` writes one. Perplexity is never interpolated. A
run shows one only if its policy with all parameters was measured for the same bits and, where the masks depend on the
cache, its DRAM share and eviction too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NoReturn

import pandas as pd

from dipsim.basics import assets
from dipsim.basics.errors import InputError, quoted
from dipsim.basics.files import sha256, write
from dipsim.basics.units import significant
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.results.csv_table import AMOUNT, COUNT, POSITIVE, REAL, SHARE, TEXT, Column, read_table, refuse_rows
from dipsim.sparsity.selection import sees_memory
from dipsim.storage.layouts import load_layout
from dipsim.storage.learned import learned_file
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import Trace

MEASURED, NOT_MEASURED = "measured", "not measured"  # what tables and figures say of a perplexity


def source_of(perplexity: float | None) -> str:
    """What stands beside a perplexity in a table."""
    return NOT_MEASURED if perplexity is None else MEASURED


def rounded(perplexity: float | None) -> str:
    """A perplexity as figures say it; None or NaN where it was not measured."""
    return NOT_MEASURED if perplexity is None or math.isnan(perplexity) else significant(perplexity, 4)


def priced(perplexity: float | None, error: float | None = None) -> str:
    """A perplexity as tables say it, with its standard error if that is known; each None or NaN where it is not."""
    if perplexity is None or math.isnan(perplexity):
        return NOT_MEASURED
    return f"{perplexity:.2f}" + ("" if error is None or math.isnan(error) else f" ± {error:.2f}")


@dataclass(frozen=True)
class Measured:
    """One row: a setting, its perplexity over `tokens` tokens in sequences of `length`, and what the run found.

    `parameters` are all of the policy's, as JSON. `mlp_fraction` is the share of the MLP that DRAM holds beside the
    static parts. `standard_error` is that of the perplexity, paired with the dense model. `tokens_per_s` is simulated
    on `device` from the very masks that gave the perplexity. `adapter` is the folder name of a merged LoRA adapter.
    `memory` is what else the masks depend on (`memory_of`). `bits` are those that were simulated, as JSON, by default
    the trace's own; the perplexity is that of the model's file as it is.
    """

    policy: str
    parameters: str
    mlp_fraction: float
    eviction: str
    tokens: int
    length: int
    perplexity: float
    standard_error: float
    hit_rate: float
    mlp_fraction_read: float
    device: str
    timing: str
    tokens_per_s: float
    text: str
    model: str
    adapter: str = ""
    memory: str = ""
    bits: str = ""


LONGEST_JSON = 1_000_000  # letters: a device may have large tables
_COLUMNS = {  # of those that are no text
    **dict.fromkeys(("tokens", "length"), COUNT),
    **dict.fromkeys(("perplexity", "tokens_per_s"), POSITIVE),
    "hit_rate": SHARE,
    "mlp_fraction": REAL,
    **dict.fromkeys(("mlp_fraction_read", "standard_error"), AMOUNT),
    **dict.fromkeys(("adapter", "bits"), Column(default="")),
    "memory": Column(default="", longest=LONGEST_JSON),
    "parameters": Column(longest=LONGEST_JSON),
}


def parameters(setting: Setting) -> str:
    """All parameters of the setting's policy, as JSON with sorted keys; of a file its name, wherever it lies."""
    files = {file: file.name for file in setting.policy.files()}
    named = {name: files.get(Path(str(value)), value) for name, value in setting.policy.model_dump(mode="json").items()}
    return json.dumps(named, sort_keys=True)


def bits_of(shape: ModelShape) -> str:
    """The bits of a model, as JSON with sorted keys."""
    return json.dumps(shape.bits.model_dump(), sort_keys=True)


def mlp_fraction(plan: FetchPlan) -> float:
    """The share of the MLP that the plan's DRAM could hold beside the static parts, to six digits."""
    static = plan.budget.static_bytes - plan.budget.policy_bytes + plan.budget.buffer_bytes
    return round((plan.setting.dram_bytes - static) / plan.shape.mlp_bytes, 6)


def memory_of(plan: FetchPlan) -> str:
    """What the masks depend on besides policy, DRAM and eviction, as text; empty where there is nothing.

    A cache-aware policy sees who is resident, which depends on the scope of a cache of experts, with pinned columns on
    the layout, and with `auto` on the device. The best split of the DRAM depends on all that reading does. A policy
    that uses what is read depends on how it is read. Files that a policy reads stand by their hashes.
    """
    setting = plan.setting
    seen: dict[str, object] = {}
    uses_all = any(group.uses_all for group in plan.groups)
    if uses_all or setting.policy.cache_aware:
        if setting.start == "filled":
            seen["start"] = setting.start
        if setting.split != "even":  # which is learned for the reads that there are
            flash = setting.flash and setting.flash.model_dump(exclude_defaults=True)
            read = {"layout": _layout_hash(setting), "flash": flash, "page": setting.page}
            seen |= {"split": setting.split, "calibration": _calibration_hash(setting), **read}
            seen["stream_static"] = setting.stream_static
        if setting.scope == "model":
            seen["scope"] = setting.scope
        together = {"streams": setting.streams - 1, "draft": setting.draft}  # others that change the caches
        seen |= {name: count for name, count in together.items() if count}
        if uses_all and setting.buffer:  # what is read ahead changes what is read along
            seen["buffer"] = setting.buffer
        if uses_all or setting.eviction == "pinned":
            seen |= {"layout": _layout_hash(setting), "calibration": _calibration_hash(setting)}
    if uses_all or (load_layout(setting.layout).needs_pinned and seen):
        seen["flash"] = setting.flash and setting.flash.model_dump(exclude_defaults=True)
    if uses_all and setting.flash is None and setting.page != 1:
        seen["page"] = setting.page
    if files := setting.policy.files():
        seen["files"] = [sha256(file) for file in files]
    return json.dumps(seen, sort_keys=True) if seen else ""


def _layout_hash(setting: Setting) -> str:
    file = learned_file(setting.layout)
    return sha256(file) if file else setting.layout


def _calibration_hash(setting: Setting) -> str | None:
    return setting.calibration and sha256(assets.find("traces", setting.calibration))


def write_quality(rows: Iterable[Measured], path: Path) -> None:
    """Write a quality table, whole or not at all."""
    write(path, pd.DataFrame([asdict(row) for row in rows]).to_csv(index=False))


def read_quality(trace: Trace) -> list[Measured]:
    """Read the table beside a recorded trace; empty where there is none. Raises InputError if it is not one.

    A synthetic trace has no perplexity, whatever lies beside its recipe.
    """
    if trace.header.source.get("synthetic"):
        return []
    path = trace.path.with_name(f"{trace.path.stem}.quality.csv")
    if not path.exists():
        return []
    try:
        table = read_table(path, {field.name: _COLUMNS.get(field.name, TEXT) for field in fields(Measured)}, _foreign)
        refuse_rows(path, [not _is_mapping(text) for text in table["parameters"]], "its parameters are no JSON object")
    except InputError as error:
        raise InputError(f"{error}; make the table again with `python -m dipsim evaluate`") from None
    table["bits"] = table["bits"].replace("", bits_of(trace.shape))
    columns = [table[field.name] for field in fields(Measured)]
    return [Measured(*row) for row in zip(*columns, strict=True)]


def _foreign(name: str) -> NoReturn:
    raise InputError(f"{quoted(name)} is no column of a quality table; remove it")


def _is_mapping(text: str) -> bool:
    with suppress(ValueError, RecursionError):
        return isinstance(json.loads(text), dict)
    return False


def lookup(rows: Iterable[Measured], plan: FetchPlan) -> tuple[float, float] | tuple[None, None]:
    """The measured perplexity of exactly the plan's setting and its standard error, or two times None.

    The masks of a cache-blind policy, hence its perplexity, are the same for every DRAM size and eviction. A user's
    plugin has no perplexity, because its file may have changed since.
    """
    setting = plan.setting
    if not setting.policy.shipped:
        return None, None
    memory = memory_of(plan)
    for row in rows:
        same = row.policy == setting.policy.name and _same_parameters(row, setting)
        same = same and (row.model, row.adapter, row.memory) == (plan.shape.name, "", memory)
        same = same and row.bits == bits_of(plan.shape)
        cache = (row.mlp_fraction, row.eviction) == (mlp_fraction(plan), setting.eviction)
        if same and (cache or not sees_memory(setting.policy, plan.groups)):
            return row.perplexity, row.standard_error
    return None, None


def _same_parameters(row: Measured, setting: Setting) -> bool:
    """Whether a row is of the setting's parameters. One that the row does not name has its default."""
    named, fields_ = json.loads(row.parameters), type(setting.policy).model_fields
    defaults = {name: field.default for name, field in fields_.items() if not field.is_required()}
    return bool({**defaults, **named} == json.loads(parameters(setting)))
