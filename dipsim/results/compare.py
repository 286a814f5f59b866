"""Runs of one model side by side: what differs between them, and a row for each policy and run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dipsim.basics.errors import InputError
from dipsim.basics.files import write
from dipsim.results.csv_table import AMOUNT, POSITIVE, SHARE, SMALLEST, TEXT, Column, read_table, refuse_rows
from dipsim.results.dictionary import write_columns
from dipsim.results.folder import Run, made_again
from dipsim.results.labels import short
from dipsim.results.quality import source_of

TABLE = "compare.csv"
PARTS, SETTING = "parts_s.", "setting."  # what the names of columns begin with
_OR_NOTHING = Column(float, 0, empty=np.nan)
_COLUMNS = {
    **dict.fromkeys(("policy", "compared", "model", "device"), TEXT),
    **dict.fromkeys(("dram_bytes", "tokens", "tokens_per_s"), POSITIVE),
    "hit_rate": SHARE,
    "perplexity": Column(float, SMALLEST, empty=np.nan),
    **dict.fromkeys(("ratio", "perplexity_standard_error", "energy_j_per_token"), _OR_NOTHING),
}
TOLD = ("device", "dram", "layout", "eviction", "timing", "start", "tokens", "policies")  # by the runs themselves


@dataclass(frozen=True)
class Compared:
    """The runs of a folder under the name that is shown, and those options of its experiment that are no defaults."""

    name: str
    runs: Sequence[Run]
    options: Mapping[str, Any]

    @property
    def model(self) -> str:
        """What was run; in folders of version 0.1 the trace says it."""
        return self.runs[0].model or str(self.options["trace"])

    @property
    def settings(self) -> dict[str, str]:
        """All that makes the runs what they are, by name, but for their policies."""
        options = {name: value for name, value in self.options.items() if name not in TOLD}
        return self.runs[0].settings | {"model": self.model} | _flat(options)

    @property
    def by_policy(self) -> dict[str, Run]:
        """The runs by their policies."""
        return {run.policy: run for run in self.runs}


def _flat(options: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Options by dotted name: {"cache": {"size": "1 GB"}} is {"cache.size": "1 GB"}."""
    found: dict[str, str] = {}
    for name, value in options.items():
        found |= (
            _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": short(str(value))}
        )
    return found


def check_comparable(compared: Sequence[Compared]) -> None:
    """Raise InputError unless all are of one model and have a policy in common."""
    first, *others = compared
    for other in others:
        if other.model != first.model:
            raise InputError(
                f"{first.name} is of {first.model}, {other.name} of {other.model}: speeds of different models do not "
                "compare; give runs of one model"
            )
    if not set.intersection(*(set(each.by_policy) for each in compared)):
        policies = "; ".join(f"{each.name} has {', '.join(each.by_policy)}" for each in compared)
        raise InputError(f"no policy is in all that is compared: {policies}; run them with the same policies")


def differences(table: pd.DataFrame) -> tuple[dict[str, str], dict[str, list[str]]]:
    """From the rows of a comparison the settings that all share, and by name those that differ: one value for each."""
    each = table.drop_duplicates("compared")
    values = {name.removeprefix(SETTING): list(each[name]) for name in map(str, each) if name.startswith(SETTING)}
    same = {name: found[0] for name, found in values.items() if len(set(found)) == 1 and name != "trace"}
    return same, {name: found for name, found in values.items() if len(set(found)) > 1}


def said(differ: Mapping[str, Sequence[str]]) -> str:
    """What differs, in a line."""
    return " · ".join(f"{name} {' / '.join(values)}" for name, values in differ.items()) or "nothing but the folders"


def rows(compared: Sequence[Compared]) -> pd.DataFrame:
    """A row for each policy and run of it, policy by policy. `ratio` is the speed over that of the first compared.

    What is not known is NaN, a setting that is not given `default`. What a token waits for has a column a part, 0 where
    there is no such part.
    """
    policies = dict.fromkeys(policy for each in compared for policy in each.by_policy)
    parts = dict.fromkeys(part for each in compared for run in each.runs for part in run.parts_s)
    settings = dict.fromkeys(name for each in compared for name in each.settings)
    found = []
    for policy in policies:
        base = compared[0].by_policy.get(policy)
        for each in compared:
            if (run := each.by_policy.get(policy)) is None:
                continue
            found.append(
                {
                    **{"policy": policy, "compared": each.name, "model": each.model, "device": run.device},
                    **{"dram_bytes": run.dram_bytes, "tokens": run.tokens, "tokens_per_s": run.tokens_per_s},
                    "ratio": np.nan if base is None else run.tokens_per_s / base.tokens_per_s,
                    "hit_rate": run.hit_rate,
                    "perplexity": run.perplexity,
                    "perplexity_standard_error": run.perplexity_standard_error,
                    "perplexity_source": source_of(run.perplexity),
                    "energy_j_per_token": run.energy_j_per_token,
                    **{f"{PARTS}{part}": run.parts_s.get(part, 0.0) for part in parts},
                    **{f"{SETTING}{name}": each.settings.get(name, "default") for name in settings},
                }
            )
    numbers = dict.fromkeys(("perplexity", "perplexity_standard_error", "energy_j_per_token"), float)
    return pd.DataFrame(found).astype(numbers)


def write_compare(table: pd.DataFrame, folder: Path) -> None:
    """Write the rows of a comparison as `compare.csv`, and what its columns mean."""
    write(folder / TABLE, table.to_csv(index=False))
    write_columns(folder, [TABLE])


def read_compare(folder: Path) -> pd.DataFrame:
    """Read `compare.csv`. Raises InputError if it is missing, or no such table."""
    with made_again(folder, "compare"):
        table = read_table(folder / TABLE, _COLUMNS, _further)
        refuse_rows(folder / TABLE, table.duplicated(["policy", "compared"]), "is there twice")
    return table


def _further(name: str) -> Column | None:
    return AMOUNT if name.startswith(PARTS) else TEXT if name.startswith(SETTING) else None
