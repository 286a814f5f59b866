"""The tables of `plan-memory`: what each part has of the same DRAM with two splits, and what that brings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dipsim.basics.files import write
from dipsim.basics.units import show, significant
from dipsim.results.csv_table import AMOUNT, POSITIVE, SMALLEST, TEXT, Column, read_table
from dipsim.results.dictionary import write_columns
from dipsim.results.folder import made_again
from dipsim.results.quality import rounded, source_of
from dipsim.results.result import Result

MEMORY, SPLITS = "memory.csv", "splits.csv"
_OR_NOTHING = Column(float, 0, empty=np.nan)
_MEMORY = {
    **dict.fromkeys(("policy", "part"), TEXT),
    "layer": _OR_NOTHING,  # nothing where a part is of the whole model
    **dict.fromkeys(("whole_bytes", "even_bytes", "best_bytes"), AMOUNT),
    **dict.fromkeys(("even_saves_s_per_byte", "best_saves_s_per_byte"), _OR_NOTHING),  # nothing where it must be there
}
_SPLITS = {
    **dict.fromkeys(("model", "device", "policy", "split", "perplexity_source"), TEXT),
    **dict.fromkeys(("dram_bytes", "tokens", "latency_s"), POSITIVE),
    **dict.fromkeys(("flash_predicted_s", "flash_s", "hit_rate"), AMOUNT),
    "perplexity": Column(float, SMALLEST, empty=np.nan),
    "latency_predicted_s": _OR_NOTHING,  # nothing where Flash and the rest run side by side
}


def write_split(pairs: Sequence[tuple[Result, Result]], out: Path) -> None:
    """Write `memory.csv` and `splits.csv`: of each policy, the results with the even and with the best split."""
    parts = [row for _, best in pairs for row in _parts(best)]
    speeds = [row for pair in pairs for row in _speeds(*pair)]
    write(out / MEMORY, pd.DataFrame(parts, columns=list(_MEMORY)).to_csv(index=False))
    write_columns(out, (MEMORY, SPLITS))
    write(out / SPLITS, pd.DataFrame(speeds).to_csv(index=False))  # last: it says whose folder this is


def read_split(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read `memory.csv` and `splits.csv`. Raises InputError if one is missing, or is no such table."""
    with made_again(folder, "plan-memory"):
        return read_table(folder / MEMORY, _MEMORY), read_table(folder / SPLITS, _SPLITS)


def parts_shown(memory: pd.DataFrame) -> pd.DataFrame:
    """The parts of one policy as people read them, the layers of a group together; what a MB saves is in ms a token."""
    rows = []
    for part, mine in memory.groupby("part", sort=False):
        layers = _span(mine["best_bytes"] / 1e6) if mine["layer"].notna().any() else ""
        rows.append(
            {
                "part": part,
                **{split: show(mine[f"{split}_bytes"].sum(), "size") for split in ("even", "best")},
                "MB a layer": layers,
                **{f"{split} saves": _span(1e9 * mine[f"{split}_saves_s_per_byte"]) for split in ("even", "best")},
            }
        )
    return pd.DataFrame(rows)


def speeds_shown(splits: pd.DataFrame) -> pd.DataFrame:
    """What the splits of one policy bring, as people read it: simulated, and predicted."""
    return pd.DataFrame(
        {
            "split": splits["split"],
            "Flash ms": (1e3 * splits["flash_s"]).map("{:.2f}".format),
            "predicted ms": (1e3 * splits["flash_predicted_s"]).map("{:.2f}".format),
            "tokens/s": (1 / splits["latency_s"]).map("{:.2f}".format),
            "predicted": (1 / splits["latency_predicted_s"]).map("{:.2f}".format).replace("nan", ""),
            "hit rate": splits["hit_rate"].map("{:.1%}".format),
            "perplexity": prices(splits),
        }
    )


def prices(splits: pd.DataFrame) -> list[str]:
    """The perplexity of each row, as people read it."""
    return [rounded(value) for value in splits["perplexity"]]


def _span(values: pd.Series[float]) -> str:
    """From the least to the largest value; nothing where a part must be there."""
    if values.isna().all():
        return ""
    low, high = (significant(value, 2) for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def _parts(best: Result) -> list[tuple[Any, ...]]:
    """Rows of `memory.csv` of one policy; they add up to the DRAM."""
    plan, budget, split = best.plan, best.plan.budget, best.plan.split
    assert split is not None
    must = {"KV cache": "kv_cache_bytes", "policy": "policy_bytes", "guesses": "buffer_bytes"}
    if not plan.setting.stream_static:
        must = {"lm_head": "lm_head_bytes", "attention": "attention_bytes", **must}
    rows: list[tuple[Any, ...]] = [
        (best.policy, part, None, size, size, size, None, None)
        for part, name in must.items()
        if (size := getattr(budget, name))
    ]
    for claim, *sizes in zip(split.claims, split.even.tolist(), split.best.tolist(), strict=True):
        saves = [claim.saves(size) * _seconds(best) for size in sizes]
        rows.append((best.policy, claim.name, claim.layer, float(claim.sizes[-1]), *sizes, *saves))
    unused = [max(0.0, budget.total_bytes - sum(row[place] for row in rows)) for place in (4, 5)]
    return rows + [(best.policy, "unused", None, budget.total_bytes, *unused, None, None)] * (max(unused) >= 1)


def _seconds(best: Result) -> float:
    """How long what a claim costs takes: it is bytes where reads cost nothing else."""
    return 1 / best.device.flash.peak_bandwidth if best.plan.setting.flash is None else 1.0


def _speeds(even: Result, best: Result) -> Iterator[dict[str, Any]]:
    """Rows of `splits.csv` of one policy. What is predicted comes from the tokens that the split is learned from."""
    split, a_unit = best.plan.split, _seconds(best)
    assert split is not None
    one_by_one = even.timeline.timing == "serial" and not even.on_clock
    summaries = even.summary(), best.summary()
    seconds = [summary["busy_s"]["flash"] / summary["tokens"] for summary in summaries]
    rest = summaries[0]["latency_s"]["mean"] - seconds[0]  # of a token, besides Flash
    for name, summary, busy, cost in zip(
        ("even", "best"), summaries, seconds, (split.even_cost, split.best_cost), strict=True
    ):
        perplexity = summary["perplexity"]
        yield {
            **{"model": best.plan.shape.name, "device": best.device.name, "policy": best.policy, "split": name},
            **{"dram_bytes": summary["dram_bytes"], "tokens": summary["tokens"]},
            **{"flash_predicted_s": cost * a_unit, "flash_s": busy},
            "latency_predicted_s": rest + cost * a_unit if one_by_one else None,
            **{"latency_s": summary["latency_s"]["mean"], "hit_rate": summary["hit_rate"]},
            "perplexity": perplexity,
            "perplexity_source": source_of(perplexity),
        }
