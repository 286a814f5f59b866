"""The tables that the terminal shows: how fast, what took the time, what was read from where, at what price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from dipsim.basics.units import show, significant
from dipsim.results.quality import NOT_MEASURED
from dipsim.results.result import Result
from dipsim.timing.service import page_fault_share

if TYPE_CHECKING:
    import pandas as pd


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
        f"{plan.shape.name} on {results[0].device.name}: {plan.tokens} tokens{begun}, layout {plan.setting.layout}, "
        f"{plan.setting.eviction}{scope}, {timeline.timing}{clock}{paging}\n"
        f"DRAM {show(budget.total_bytes, 'size')} = {' + '.join(parts)}"
    )


def run_table(results: Sequence[Result]) -> Table:
    """One row a policy. Parts of the time that are zero for all policies are left out."""
    summaries = [result.summary() for result in results]
    parts = [part for part in summaries[0]["parts_s"] if any(summary["parts_s"][part] for summary in summaries)]
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    amplified = any(summary["read_amplification"] > 1.005 for summary in summaries)
    energy = any(summary["energy_j_per_token"] is not None for summary in summaries)
    guessed = any("guesses_per_token" in summary for summary in summaries)
    settings = [
        name for name in ("dram_bytes", "layout", "eviction", "device") if len({s[name] for s in summaries}) > 1
    ]
    for name in settings:
        rows.add_column(name.removesuffix("_bytes"), no_wrap=True, vertical="bottom")
    rows.add_column("policy", overflow="fold")
    numbers = (
        *("tokens/s", "ms/token", *(f"{part} time" for part in parts), "hit rate", "MLP read"),
        *(("read amplification", "mean read") if amplified else ()),
        *(("guesses read", "used") if guessed else ()),
        *(("mJ/token",) if energy else ()),
        "perplexity",
    )
    for name in numbers:
        rows.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True, vertical="bottom")
    for summary in summaries:
        mean, perplexity = summary["latency_s"]["mean"], summary["perplexity"]
        rows.add_row(
            *(show(summary[name], "size") if name == "dram_bytes" else summary[name] for name in settings),
            escape(summary["policy"]),
            f"{summary['tokens_per_s']:.2f}",
            f"{1e3 * mean:.2f}",
            *(f"{summary['parts_s'][part] / mean:.1%}" for part in parts),
            f"{summary['hit_rate']:.1%}",
            f"{summary['mlp_fraction_read']:.1%}",
            *((f"{summary['read_amplification']:.2f}", show(summary["mean_read_bytes"], "size")) if amplified else ()),
            *(_guesses(summary.get("guesses_per_token")) if guessed else ()),
            *((_millijoules(summary["energy_j_per_token"]),) if energy else ()),
            NOT_MEASURED if perplexity is None else f"{perplexity:.2f} ± {summary['perplexity_standard_error']:.2f}",
        )
    return rows


def _guesses(fates: dict[str, float] | None) -> tuple[str, str]:
    """The guesses that were read for a token, and the share that was used."""
    if fates is None:
        return "", ""
    read = fates["useful"] + fates["late"] + fates["wasted"]
    return significant(read), f"{(fates['useful'] + fates['late']) / read:.0%}" if read else ""


def _millijoules(joules: float | None) -> str:
    return "unknown" if joules is None else significant(1e3 * joules)


def sweep_table(points: pd.DataFrame) -> Table:
    """One row a policy of a sweep, from the slowest of its points to the fastest."""
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    rows.add_column("policy", overflow="fold")
    for name in ("points", "tokens/s", "hit rate", "perplexity"):
        rows.add_column(name, justify="right", no_wrap=True)
    for policy, mine in points.groupby("policy", sort=False):
        speeds, hits = mine["tokens_per_s"], mine["hit_rate"]
        measured = mine["perplexity"].dropna().map("{:.2f}".format)
        prices = list(dict.fromkeys([*measured, *[NOT_MEASURED] * (len(measured) < len(mine))]))
        rows.add_row(
            escape(str(policy)),
            str(len(mine)),
            f"{speeds.min():.2f} to {speeds.max():.2f}",
            f"{hits.min():.1%} to {hits.max():.1%}",
            prices[0] if len(prices) == 1 else "several",
        )
    return rows


def plain_table(data: pd.DataFrame) -> Table:
    """Any table of text and numbers, as it is."""
    rows = Table(*map(str, data.columns), box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for row in data.itertuples(index=False):
        rows.add_row(*(escape(str(value)) for value in row))
    return rows
