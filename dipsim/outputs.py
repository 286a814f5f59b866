"""The output folder: tables and provenance written by a run, and read back to be drawn."""

from __future__ import annotations

import json
import math
import platform
import textwrap
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import pandas as pd
import yaml
from pydantic import AliasPath, BaseModel, Field, PositiveFloat, TypeAdapter, ValidationError

import dipsim
from dipsim import assets, perfetto
from dipsim.experiment import Experiment, shown_token
from dipsim.files import InputError, complain, sha256, write
from dipsim.result import Result
from dipsim.timeline import PARTS
from dipsim.trace import Trace
from dipsim.units import show

FIGURES = ("latency", "policies", "hit_rate_by_layer", "token_gantt")
TABLES: dict[str, dict[str, Any]] = {  # the columns that are read back
    "tokens.csv": {"policy": str, "token": int, "latency_s": float} | {f"{part}_s": float for part in PARTS},
    "layers.csv": {"policy": str, "layer": int, "hit_rate": float},
    "spans.csv": dict.fromkeys(("policy", "resource", "step"), str)
    | {"token": int, "layer": int, "start_s": float, "end_s": float},
}


def save(experiment: Experiment, results: Sequence[Result], out: Path, timeline: bool = False) -> None:
    """Write the tables of a run to a folder, each file whole or not at all; what an earlier run left is replaced."""
    tables = {
        "tokens.csv": [result.tokens() for result in results],
        "layers.csv": [result.layers() for result in results],
        "spans.csv": [result.spans(shown_token(result.plan)) for result in results],
    }
    for name in (
        "summary.json",
        "timeline.json",
        *(f"{figure}.{kind}" for figure in FIGURES for kind in ("png", "svg")),
    ):
        if (out / name).is_file():
            (out / name).unlink()  # it would belong to another run; a folder without summary.json is not finished
    for name, parts in tables.items():
        write(out / name, pd.concat(parts, ignore_index=True).to_csv(index=False))
    write(out / "experiment.yaml", yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False))
    write(out / "provenance.json", json.dumps(_provenance(experiment), indent=2) + "\n")
    if timeline:
        write(out / "timeline.json", partial(perfetto.write_events, results))
    save_summary(results, out)


def save_summary(results: Sequence[Result], out: Path) -> None:
    """Write `summary.json`, one object a run."""
    write(out / "summary.json", json.dumps([result.summary() for result in results], indent=2) + "\n")


def _provenance(experiment: Experiment) -> dict[str, Any]:
    """What the run was made from: versions, and the SHA-256 of every file."""
    files = {
        "trace": assets.find("traces", experiment.trace),
        "device": assets.find("devices", experiment.device),
        **{f"policy {c.policy}": assets.find("policies", c.policy) for c in experiment.policies},
    }
    packages = ("simpy", "numpy", "pandas", "pydantic", "safetensors")
    return {
        "dipsim": dipsim.__version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "sha256": {name: sha256(path) for name, path in files.items()},
        "trace_source": Trace.open(experiment.trace).header.source,
    }


class Run(BaseModel, frozen=True, allow_inf_nan=False):
    """What is drawn of one run in `summary.json`."""

    policy: str
    device: str
    eviction: str
    timing: str
    dram_bytes: float
    tokens: int
    tokens_per_s: PositiveFloat
    mean_latency_s: float = Field(validation_alias=AliasPath("latency_s", "mean"))
    hit_rate: float
    mlp_fraction_read: float
    perplexity: PositiveFloat | None = None

    @property
    def label(self) -> str:
        return textwrap.fill(self.policy, 32, break_on_hyphens=False)

    @property
    def price(self) -> str:
        return f"perplexity: {self.measured}"

    @property
    def measured(self) -> str:
        return "not measured" if self.perplexity is None else digits(self.perplexity, 4)

    @property
    def setting(self) -> str:
        tokens = f"{self.tokens:,} token{'s' * (self.tokens > 1)}"
        parts = (f"DRAM {show(self.dram_bytes, 'size')}", f"eviction {self.eviction}", f"timing {self.timing}", tokens)
        return " · ".join((self.device, *parts))


_RUNS = TypeAdapter(Annotated[list[Run], Field(min_length=1)])


def read(folder: Path) -> tuple[list[Run], list[pd.DataFrame]]:
    """The runs of an output folder and its tables: tokens, layers, spans.

    Raises InputError if they are missing or not those of one run.
    """
    runs = _runs(folder)
    return runs, [_table(folder, name, runs) for name in TABLES]


def _runs(folder: Path) -> list[Run]:
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
    columns = TABLES[name]
    try:
        table = pd.read_csv(folder / name, usecols=list(columns), dtype=columns, keep_default_na=False)
    except OSError:
        _refuse(folder, name)
    except ValueError as error:
        _refuse(folder, name, " ".join(str(error).split()))
    if not np.isfinite(table.select_dtypes("number")).all(axis=None):
        _refuse(folder, name, "a number is not finite")
    if set(table["policy"]) != {run.policy for run in runs}:
        _refuse(folder, name, "its policies are not those of summary.json")
    return table


def _refuse(folder: Path, name: str, problem: str = "") -> NoReturn:
    what, again = (f"{folder / name}: {problem}", "again") if problem else (f"{folder}: no {name}", "first")
    raise InputError(f"{what}; run `python -m dipsim run --out {folder}` {again}") from None


def digits(value: float, digits: int = 3) -> str:
    """Significant digits without an exponent: 0.0123, 71.5, 1,234."""
    decimals = digits - 1 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(0, decimals)}f}"
