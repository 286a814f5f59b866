"""The tables that the terminal shows: how fast, what took the time, what was read from where, at what price."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table

from dipsim.basics.units import show, significant
from dipsim.results.labels import short
from dipsim.results.quality import priced
from dipsim.results.result import Result
from dipsim.timing.service import page_fault_share

if TYPE_CHECKING:
    import pandas as pd


LABEL = 20  # letters that a label may take in one line of a narrow table


def heading(results: Sequence[Result]) -> str:
    """What ran on what, and how its DRAM is divided."""
    plan, timeline = results[0].plan, results[0].timeline
    budget = plan.budget
    static = budget.lm_head_bytes + budget.attention_bytes
    rest = max(0.0, budget.total_bytes - static - budget.kv_cache_bytes - budget.buffer_bytes)
    parts = [
        f"{show(static, 'size')} lm_head and attention",
        f"{show(budget.kv_cache_bytes, 'size')} KV cache",
        f"{show(rest, 'size')} for {show(plan.shape.mlp_bytes, 'size')} of {'experts' if plan.of_experts else 'MLP'}",
    ]
    parts += [f"{show(budget.buffer_bytes, 'size')} for guesses"] if budget.buffer_bytes else []
    clock = f"\n{results[0].on_clock}" if results[0].on_clock else ""
    begun = f" after {plan.warm_up} to warm up" if plan.warm_up else f", start {plan.setting.start}"
    faults = page_fault_share(budget.total_bytes, results[0].device)
    paging = f"\n{faults:.0%} of what is resident pages in: the device has less DRAM free" if faults else ""
    scope = f" over the {plan.setting.scope}" if plan.of_experts else ""
    scope += "" if plan.setting.split == "even" else f", split {plan.setting.split}"
    return (
        f"{plan.shape.name} on {results[0].device.name}: {plan.tokens} tokens{begun}\n"
        f"layout {short(plan.setting.layout)}, eviction {plan.setting.eviction}{scope}, timing {timeline.timing}"
        f"{clock}{paging}\n"
        f"DRAM {show(budget.total_bytes, 'size')} = {' + '.join(parts)}"
    )


@dataclass(frozen=True)
class Pieces:
    """A table in as many pieces as the terminal is too narrow for: each begins with the labels.

    `numbers` are columns by name, and the one called `last` closes the first piece.
    """

    labels: Mapping[str, Sequence[str]]
    numbers: Mapping[str, Sequence[str]]
    last: str

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        least = {name: min(LABEL, _width(name, texts)) for name, texts in self.labels.items()}
        width = {name: _width(name, texts) for name, texts in self.numbers.items()}
        room = options.max_width - 2  # the edges
        gap = 2 if sum(2 + each for each in (*least.values(), *width.values())) <= room else 1
        room -= sum(gap + each for each in least.values())
        pieces: list[list[str]] = [[]]
        used = gap + width[self.last]
        for name in (name for name in self.numbers if name != self.last):
            if used + gap + width[name] > room:
                pieces.append([])
                used = 0
            pieces[-1].append(name)
            used += gap + width[name]
        pieces[0].append(self.last)
        for names in pieces:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0))
            for name in self.labels:
                table.add_column(name, overflow="fold", vertical="bottom", min_width=least[name])
            for name in names:
                table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True, vertical="bottom")
            columns = [*map(partial(map, escape), self.labels.values()), *(self.numbers[name] for name in names)]
            for row in zip(*columns, strict=True):
                table.add_row(*row)
            yield table


def _width(name: str, texts: Sequence[str]) -> int:
    """Letters of the widest text of a column, whose name is cut at its spaces."""
    return max(map(len, (*name.split(), *texts)))


def run_table(results: Sequence[Result]) -> Pieces:
    """One row a policy. Parts of the time that are zero for all policies are left out."""
    summaries = [result.summary() for result in results]
    parts = [part for part in summaries[0]["parts_s"] if any(summary["parts_s"][part] for summary in summaries)]
    settings = [
        name for name in ("dram_bytes", "layout", "eviction", "device") if len({s[name] for s in summaries}) > 1
    ]
    labels: dict[str, list[str]] = {
        name.removesuffix("_bytes"): [_setting(summary[name]) for summary in summaries] for name in settings
    }
    labels["policy"] = [short(summary["policy"]) for summary in summaries]
    numbers: dict[str, Callable[[dict[str, Any]], str]] = {
        "tokens/s": lambda s: f"{s['tokens_per_s']:.2f}",
        "ms/token": lambda s: f"{1e3 * s['latency_s']['mean']:.2f}",
        **{f"{part} time": partial(_share, part) for part in parts},
        "hit rate": lambda s: f"{s['hit_rate']:.1%}",
        "MLP read": lambda s: f"{s['mlp_fraction_read']:.1%}",
    }
    if any(summary["read_amplification"] > 1.005 for summary in summaries):
        numbers["read amplification"] = lambda s: f"{s['read_amplification']:.2f}"
        numbers["mean read"] = lambda s: show(s["mean_read_bytes"], "size")
    if any("guesses_per_token" in summary for summary in summaries):
        numbers["guesses read"] = lambda s: _guesses(s.get("guesses_per_token"))[0]
        numbers["used"] = lambda s: _guesses(s.get("guesses_per_token"))[1]
    if any(summary["energy_j_per_token"] is not None for summary in summaries):
        numbers["mJ/token"] = lambda s: _millijoules(s["energy_j_per_token"])
    numbers["perplexity"] = lambda s: priced(s["perplexity"], s["perplexity_standard_error"])
    texts = {name: [text(summary) for summary in summaries] for name, text in numbers.items()}
    return Pieces(labels, texts, "perplexity")


def _setting(value: float | str) -> str:
    return short(value) if isinstance(value, str) else show(value, "size")


def _share(part: str, summary: dict[str, Any]) -> str:
    return f"{summary['parts_s'][part] / summary['latency_s']['mean']:.1%}"


def _guesses(fates: dict[str, float] | None) -> tuple[str, str]:
    """The guesses that were read for a token, and the share that was used."""
    if fates is None:
        return "", ""
    read = fates["useful"] + fates["late"] + fates["wasted"]
    return significant(read), f"{(fates['useful'] + fates['late']) / read:.0%}" if read else ""


def _millijoules(joules: float | None) -> str:
    return "unknown" if joules is None or math.isnan(joules) else significant(1e3 * joules)


def sweep_table(points: pd.DataFrame) -> Table:
    """One row a policy of a sweep, from the slowest of its points to the fastest."""
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    rows.add_column("policy", overflow="fold")
    energy = points["energy_j_per_token"].notna().any()
    to = " to\n" if energy else " to "  # so that one more column fits
    for name in ("points", "tokens/s", "hit rate", *(("mJ/token",) if energy else ()), "perplexity"):
        rows.add_column(name, justify="right", no_wrap=True)
    for policy, mine in points.groupby("policy", sort=False):
        speeds, hits = mine["tokens_per_s"], mine["hit_rate"]
        joules = mine["energy_j_per_token"].astype(float)
        found = list(dict.fromkeys(priced(price, None) for price in mine["perplexity"]))
        rows.add_row(
            escape(short(str(policy))),
            str(len(mine)),
            f"{speeds.min():.2f}{to}{speeds.max():.2f}",
            f"{hits.min():.1%}{to}{hits.max():.1%}",
            *((to.join(dict.fromkeys(map(_millijoules, (joules.min(), joules.max())))),) if energy else ()),
            found[0] if len(found) == 1 else "several",
        )
    return rows


def compare_table(rows: pd.DataFrame) -> Table:
    """One row for each policy and run of it, from the rows of a comparison. `ratio` is over the first compared."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("policy", "of"):
        table.add_column(name, overflow="fold")
    energy = bool(rows["energy_j_per_token"].notna().any())
    for name in ("tokens/s", "ratio", "hit rate", "perplexity", *(("mJ/token",) if energy else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for policy, mine in rows.groupby("policy", sort=False):
        for index, row in enumerate(mine.to_dict("records")):
            table.add_row(
                "" if index else escape(short(str(policy))),
                escape(row["compared"]),
                f"{row['tokens_per_s']:.2f}",
                "" if row["ratio"] != row["ratio"] else f"{row['ratio']:.2f}x",
                f"{row['hit_rate']:.1%}",
                priced(row["perplexity"], row["perplexity_standard_error"]),
                *((_millijoules(row["energy_j_per_token"]),) if energy else ()),
                end_section=index == len(mine) - 1,
            )
    return table


def budget_table(best: pd.DataFrame) -> Table:
    """What `speedups` found: below each ratio the parameters that give it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_lines=True)
    budgets = [name for name in map(str, best) if f"{name} setting" in best]
    for name in ("MLP in DRAM", "policy", *budgets):
        table.add_column(name, overflow="fold")
    for row in best.to_dict("records"):
        policy = str(row["policy"])
        found = [(row[name], row[f"{name} setting"].removeprefix(policy).strip("()")) for name in budgets]
        cells = ("\n".join((ratio, *short(given).split(", "))) for ratio, given in found)
        table.add_row(f"{row['mlp_fraction']:.0%}", *map(escape, (policy, *cells)))
    return table
