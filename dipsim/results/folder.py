"""The output folder of a run: its tables are written, and read back to be drawn."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import pandas as pd
from pydantic import AliasPath, BaseModel, Field, PositiveFloat, TypeAdapter, ValidationError

from dipsim.basics.errors import InputError
from dipsim.basics.fields import complain
from dipsim.basics.files import remove_temporary, write
from dipsim.basics.units import show, significant
from dipsim.results import perfetto
from dipsim.results.quality import NOT_MEASURED
from dipsim.results.result import Result, shown_token
from dipsim.timing.timeline import BREAKDOWN

FIGURES = ("latency", "policies", "hit_rate_by_layer", "token_gantt", "experts_by_layer")
EXPERTS = "experts.csv"  # in the folder of a model that has experts
TABLES: dict[str, dict[str, Any]] = {  # the columns that are read back
    "tokens.csv": {"policy": str, "token": int, "latency_s": float} | {f"{part}_s": float for part in BREAKDOWN},
    "layers.csv": {"policy": str, "layer": int, "hit_rate": float},
    "spans.csv": dict.fromkeys(("policy", "resource", "kind", "step"), str)
    | {"token": int, "layer": int, "start_s": float, "end_s": float},
}
USES = {"policy": str, "layer": int, "expert": int, "tokens": int}


def clear_results(out: Path) -> None:
    """Remove what an earlier run left in a folder, and this one may not replace: all but the tables."""
    remove_temporary(out)
    drawn = [f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")]
    for name in ("summary.json", "timeline.json", "replay.csv", EXPERTS, *drawn):
        if (out / name).is_file():
            (out / name).unlink()


def write_tables(results: Sequence[Result], out: Path, timeline: bool = False) -> None:
    """Write the tables of a run to a folder, each whole or not at all; with `timeline` also `timeline.json`.

    `summary.json` is written last: a folder without it is not finished.
    """
    tables = {
        "tokens.csv": [result.tokens() for result in results],
        "layers.csv": [result.layers() for result in results],
        "spans.csv": [result.spans(shown_token(result.plan.rows)) for result in results],
    }
    experts = [table for result in results if (table := result.experts()) is not None]
    for name, parts in (tables | ({EXPERTS: experts} if experts else {})).items():
        write(out / name, pd.concat(parts, ignore_index=True).to_csv(index=False))
    if timeline:
        write(out / "timeline.json", partial(perfetto.write_events, results))
    write_summary(results, out)


def write_summary(results: Sequence[Result], out: Path) -> None:
    """Write `summary.json`, one object a run."""
    write(out / "summary.json", json.dumps([result.summary() for result in results], indent=2) + "\n")


class Run(BaseModel, frozen=True, allow_inf_nan=False):
    """What figures show of one run in `summary.json`."""

    policy: str
    device: str
    start: str = "cold"  # as in folders of version 0.1
    layout: str = "columns"
    eviction: str
    timing: str
    dram_bytes: float
    tokens: int
    scope: str | None = None  # of a cache of experts
    on_clock: str | None = None
    working_set_bytes: float | None = None
    tokens_per_s: PositiveFloat
    mean_latency_s: float = Field(validation_alias=AliasPath("latency_s", "mean"))
    flash_s: float | None = Field(None, validation_alias=AliasPath("busy_s", "flash"))
    hit_rate: float
    mlp_fraction_read: float
    energy_j_per_token: float | None = None
    perplexity: PositiveFloat | None = None

    @property
    def label(self) -> str:
        """The policy, in lines that fit beside a figure."""
        return textwrap.fill(self.policy, 32, break_on_hyphens=False)

    @property
    def price(self) -> str:
        """The perplexity, with its name."""
        return f"perplexity: {self.measured}"

    @property
    def measured(self) -> str:
        """The perplexity, or that it was not measured."""
        return NOT_MEASURED if self.perplexity is None else significant(self.perplexity, 4)

    @property
    def setting(self) -> str:
        """What the runs of a folder have in common."""
        tokens = f"{self.tokens:,} token{'s' * (self.tokens > 1)}"
        served = f" over the {self.scope}" if self.scope else ""
        rule = f"eviction {self.eviction}{served}"
        memory = [f"layout {self.layout}", rule, f"timing {self.timing}", f"start {self.start}"]
        memory += [self.on_clock] if self.on_clock else []
        return " · ".join((self.device, f"DRAM {show(self.dram_bytes, 'size')}", *memory, tokens))


_RUNS = TypeAdapter(Annotated[list[Run], Field(min_length=1)])


def read_tables(folder: Path) -> tuple[list[Run], list[pd.DataFrame]]:
    """Read the runs of an output folder and its tables: tokens, layers, spans.

    Raises InputError if they are missing or not those of one run.
    """
    runs = read_runs(folder)
    return runs, [_table(folder, name, runs) for name in TABLES]


def read_experts(folder: Path, runs: list[Run]) -> pd.DataFrame | None:
    """Read how often each expert was used; None where there are none. Raises InputError if it is not of these runs."""
    return _table(folder, EXPERTS, runs) if (folder / EXPERTS).is_file() else None


def read_runs(folder: Path) -> list[Run]:
    """Read the runs of an output folder. Raises InputError if its summary is missing or not that of one run."""
    path = folder / "summary.json"
    try:
        runs = _RUNS.validate_json(path.read_bytes())
    except OSError:
        _refuse(folder, path.name)
    except ValidationError as error:
        complain(error, path)
    if len({run.policy for run in runs}) < len(runs) or len({run.setting for run in runs}) > 1:
        _refuse(folder, path.name, "each policy must stand there once, and all in the same setting")
    return runs


def _table(folder: Path, name: str, runs: list[Run]) -> pd.DataFrame:
    columns = USES if name == EXPERTS else TABLES[name]
    try:
        table = pd.read_csv(folder / name, usecols=partial(_wanted, columns), dtype=columns, keep_default_na=False)
        if "kind" in columns and "kind" not in table:  # as in folders of version 0.1
            table["kind"] = "demand"
        if missing := set(columns) - set(table):
            raise ValueError(f"{min(missing)}: the column is missing")
    except OSError:
        _refuse(folder, name)
    except ValueError as error:
        _refuse(folder, name, " ".join(str(error).split()))
    if not np.isfinite(table.select_dtypes("number")).all(axis=None):
        _refuse(folder, name, "a number is not finite")
    if set(table["policy"]) != {run.policy for run in runs}:
        _refuse(folder, name, "its policies are not those of summary.json")
    return table


def _wanted(columns: dict[str, Any], name: str) -> bool:
    """Whether a column is read: one of those, its stream, or what a token waited for of a further resource."""
    return name in columns or ("latency_s" in columns and (name.endswith("_s") or name == "stream"))


def _refuse(folder: Path, name: str, problem: str = "") -> NoReturn:
    what, again = (f"{folder / name}: {problem}", "again") if problem else (f"{folder}: no {name}", "first")
    raise InputError(f"{what}; run `python -m dipsim run --out {folder}` {again}") from None
