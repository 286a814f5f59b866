"""Reads a sweep's table for its figures: what is fixed, what varies, what it costs in perplexity.

A *case* is all that a grid has besides DRAM size, Flash speed and policy: trace, eviction, timing, ...
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dipsim.basics.units import significant, unit_of
from dipsim.results.csv_table import (
    AMOUNT,
    ANYTHING,
    POSITIVE,
    SHARE,
    SMALLEST,
    TEXT,
    Column,
    read_table,
    refuse_rows,
)
from dipsim.results.dictionary import OWN
from dipsim.results.folder import made_again
from dipsim.results.labels import short
from dipsim.results.quality import NOT_MEASURED

SETTINGS = ("layout", "start", "eviction", "scope", "timing", "prompt")
CLIFF = "cliff_dram_bytes"  # below it a cache does not hold the experts of one token; empty without experts
COLUMNS: dict[str, Column] = {
    **dict.fromkeys(("trace", "model", "device", *SETTINGS, "read_through", "stream_static", "policy", "key"), TEXT),
    **dict.fromkeys(("dram_bytes", "flash_bandwidth_bytes_per_s", "tokens", "tokens_per_s"), POSITIVE),
    **dict.fromkeys(("mlp_fraction_in_dram", "hit_rate"), SHARE),
    "flash_utilisation": AMOUNT,
    "scope": Column(default="layer"),
    **dict.fromkeys((CLIFF, "perplexity_standard_error"), Column(float, 0, default=np.nan, empty=np.nan)),
    "perplexity": Column(float, SMALLEST, empty=np.nan, blank=NOT_MEASURED),  # a word in tables of version 0.1
}
DRAM, FLASH = "dram_bytes", "flash_bandwidth_bytes_per_s"
ON_AXES = ("flash.read_bandwidth", "cache.size")  # what is swept and drawn along an axis
NAMES = {DRAM: ("DRAM", "size"), FLASH: ("Flash read bandwidth", "bandwidth")}
WITHOUT: dict[str, tuple[str, Any]] = {"prefetch": ("prefetch.when", "never"), "drafts": ("speculate.draft", 0)}
TO_MAP = {  # what a map of gains takes
    "prefetch": "prefetch.when with never among its values, and two more keys that are numbers",
    "drafts": "speculate.draft with 0 and two more values, and one more key that is a number",
}
NO_OPTIONS = ("flash", "dram", "compute", "energy", "cache", "bits")  # what other swept keys with a dot begin with
STREAMED = {"True": "static weights streamed", "False": "static weights in DRAM"}
THROUGH = {"True": "gaps read through", "False": "gaps left out"}


def read_sweep(path: Path) -> pd.DataFrame:
    """Read the table; add each row's `case` (what varies), `other` (without the trace) and `speedup` over dense.

    A perplexity that was not measured is NaN. Paths are file names where those tell rows apart as well.
    Raises InputError if it is missing or not a sweep's.
    """
    with made_again(path.parent, "sweep"):
        table = read_table(path, COLUMNS, lambda name: ANYTHING if is_swept(name) else None)
        refuse_rows(path, table["key"].duplicated(), "is there twice")
        for name, texts in (("stream_static", STREAMED), ("read_through", THROUGH)):
            table[name] = table[name].map(texts)
            refuse_rows(path, table[name].isna(), f"its {name} is neither True nor False")
    for name in ("trace", "layout", "policy"):
        table[name] = _short(table[name])
    named = zip(table["trace"], table["model"], strict=True)
    table["trace"] = [trace if model in trace else f"{model} ({trace})" for trace, model in named]
    hardware = [name for name in table.columns if is_swept(name) and name not in ON_AXES]
    said = table.assign(tokens=table["tokens"].map("{:,.0f} tokens".format))
    for name in (*hardware, *SETTINGS):
        said[name] = f"{name} " + table[name].astype(str)
    said.loc[table[CLIFF].isna(), "scope"] = ""  # without experts it means nothing
    for of, (switch, off) in WITHOUT.items():
        if switch in table:  # without it, its options mean nothing
            said.loc[table[switch] == off, [name for name in hardware if is_own(name, of) and name != switch]] = ""
    settings = ["trace", "device", *hardware, *SETTINGS, "read_through", "stream_static", "tokens"]
    within = table.groupby("trace")[settings].nunique().max()  # what differs from trace to trace alone is the trace's
    varying = [name for name in settings if varies(table[name]) and (name == "trace" or within[name] > 1)]
    table["setting"] = join_columns(said, [name for name in [*settings[:-4], "tokens"] if not varies(table[name])])
    table["case"] = join_columns(said, varying)
    table["other"] = join_columns(said, [name for name in varying if name != "trace"])
    point = pd.MultiIndex.from_frame(table[["case", DRAM, FLASH]])
    dense = table["tokens_per_s"].set_axis(point)[(table["policy"] == "dense").to_numpy()]
    dense = dense[~dense.index.duplicated(keep=False)]  # two dense points that figures cannot tell apart are no measure
    table["speedup"] = table["tokens_per_s"] / dense.reindex(point).to_numpy()
    return table


def _short(texts: pd.Series[str]) -> pd.Series[str]:
    """Texts with paths cut to file names, unless that makes two of them one."""
    cut = texts.map(short)
    return cut if cut.nunique() == texts.nunique() else texts


def axis_of(values: Iterable[float], name: str) -> tuple[str, float]:
    """The name of an axis of DRAM or Flash, in a unit that suits the values, and that unit in SI."""
    label, dimension = NAMES[name]
    unit, scale = unit_of(values, dimension)
    return f"{label} ({unit})", scale


def swept_alone(table: pd.DataFrame, name: str) -> bool:
    """Whether a number is swept by itself: it varies within a case, not only from one device or trace to the next."""
    return bool(table.groupby("case")[name].agg(varies).any())


def join_columns(table: pd.DataFrame, names: Sequence[str]) -> pd.Series[str]:
    """The texts of several columns, joined row by row; empty ones are left out."""
    rows = table[list(names)].astype(str).to_numpy()
    return pd.Series([" · ".join(filter(None, row)) for row in rows], index=table.index)


def is_swept(name: str) -> bool:
    """Whether a column is a swept key of a device, of an option or of a plugin."""
    return "." in name or name in OWN


def is_own(name: str, of: str) -> bool:
    """Whether a column is an option of `prefetch`, or a parameter of its prefetcher, or one of `drafts`."""
    head, dot, _ = name.partition(".")
    return bool(dot) and head not in NO_OPTIONS and (head == "speculate") == (of == "drafts")


def varies(values: pd.Series[Any]) -> bool:
    """Whether there is more than one value."""
    return len(values.unique()) > 1


def price(rows: pd.DataFrame) -> str:
    """The perplexity of these points, from the lowest to the highest."""
    known = rows["perplexity"].dropna()
    if known.empty:
        return f"perplexity: {NOT_MEASURED}"
    low, high = float(known.min()), float(known.max())
    span = significant(low, 4) + (f" to {significant(high, 4)}" if high > low else "")
    return f"perplexity: {span}" + (f" ({len(known)} of {len(rows)} measured)" if len(known) < len(rows) else "")


def heading(rows: pd.DataFrame) -> str:
    """What the rows have in common, for the head of a figure."""
    shared = [name for name in ("setting", "case") if not varies(rows[name])]
    return " · ".join(filter(None, map(str, rows[shared].iloc[0])))
