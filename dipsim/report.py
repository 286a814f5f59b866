"""Results -> what the terminal shows: how fast, held up by what, how much read from where, at what price."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from dipsim.result import Result
from dipsim.timeline import PARTS
from dipsim.units import show


def heading(results: Sequence[Result]) -> str:
    """What ran on what, and how its DRAM is divided."""
    plan, timeline = results[0].plan, results[0].timeline
    budget = plan.budget
    static = budget.lm_head_bytes + budget.attention_bytes
    rest = max(0.0, budget.total_bytes - static - budget.kv_cache_bytes)
    parts = (
        f"{show(static, 'size')} lm_head and attention",
        f"{show(budget.kv_cache_bytes, 'size')} KV cache",
        f"{show(rest, 'size')} for {show(plan.shape.mlp_bytes, 'size')} of MLP",
    )
    return (
        f"{plan.shape.name} on {results[0].device.name}: {plan.tokens} tokens, {plan.setting.eviction}, "
        f"{timeline.timing}\nDRAM {show(budget.total_bytes, 'size')} = {' + '.join(parts)}"
    )


def table(results: Sequence[Result]) -> Table:
    """One row a policy; parts of the time that are zero for all are left out."""
    summaries = [result.summary() for result in results]
    parts = [part for part in PARTS if any(summary["parts_s"][part] for summary in summaries)]
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    rows.add_column("policy", overflow="fold")
    numbers = ("tokens/s", "ms/token", *(f"{part} time" for part in parts), "hit rate", "MLP read", "perplexity")
    for name in numbers:
        rows.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True, vertical="bottom")
    for summary in summaries:
        mean, perplexity = summary["latency_s"]["mean"], summary["perplexity"]
        rows.add_row(
            escape(summary["policy"]),
            f"{summary['tokens_per_s']:.2f}",
            f"{1e3 * mean:.2f}",
            *(f"{summary['parts_s'][part] / mean:.1%}" for part in parts),
            f"{summary['hit_rate']:.1%}",
            f"{summary['mlp_fraction_read']:.1%}",
            "not measured" if perplexity is None else f"{perplexity:.2f}",
        )
    return rows
