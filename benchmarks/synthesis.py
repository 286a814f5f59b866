"""Does a synthetic trace hit the cache as the recorded one it was fitted to does? And which statistics does it take?

`python benchmarks/synthesis.py` prints the tables of docs/background/synthesis.md and exits with 1 if a hit rate is off
by more than the bound; `--write` also puts them there.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy
from dipsim.study.experiment import MlpFraction
from dipsim.workload import Trace
from dipsim.workload.fit import LIKE
from dipsim.workload.synthetic import SyntheticTrace
from dipsim.workload.trace import TENSORS

PAGE = Path(__file__).resolve().parent.parent / "docs/background/synthesis.md"
RECORDED = "smollm2-135m"
BOUND = 2.0  # points
EVICTIONS: tuple[str, ...] = ("lfu", "lru")
# policy, parameters, DRAM as shares of the MLP; magnitude keeps two of three matrices there before it caches any
CASES: tuple[tuple[str, dict[str, float], tuple[float, ...]], ...] = (
    ("dip", {"keep": 0.75}, (0.3, 0.5, 0.7)),
    ("dip", {"keep": 0.5}, (0.3, 0.5, 0.7)),
    ("dip-ca", {"keep": 0.75, "gamma": 0.5}, (0.3, 0.5, 0.7)),
    ("magnitude", {"fraction": 0.5}, (0.75, 0.85, 0.95)),
)
LEFT_OUT: dict[str, dict[str, float]] = {  # what is set to zero, to see what it is good for
    "memory of the token before": {"correlation": 0},
    "each neuron's own mean": {"mean_spread": 0, "mean_tail": 0},
    "each neuron's own scale": {"scale_spread": 0, "scale_tail": 0},
    "heavy tails of means and scales": {"mean_tail": 0, "scale_tail": 0},
    "heavy tails of the noise": {"tail": 0},
}


class Row(NamedTuple):
    """One case: hit rates of the cached matrices, by bytes, in percent."""

    policy: str
    dram: float
    eviction: str
    recorded: float
    synthetic: float
    worst: float  # difference of one group of matrices, in points

    @property
    def difference(self) -> float:
        return self.synthetic - self.recorded


def settings(trace: Trace, shares: slice = slice(None)) -> dict[tuple[str, float, str], Setting]:
    """Every case by policy, DRAM share and eviction; `shares` picks from the three of each policy."""
    return {
        (policy.label, share, eviction): Setting(policy, MlpFraction(share).bytes(trace.shape, trace.tokens), eviction)
        for policy, of_mlp in ((load_policy(name, **parameters), of_mlp) for name, parameters, of_mlp in CASES)
        for share in of_mlp[shares]
        for eviction in EVICTIONS
    }


def compare(recorded: Trace, synthetic: Sequence[Trace], shares: slice = slice(None)) -> list[list[Row]]:
    """The rows of each synthetic trace."""
    cases = settings(recorded, shares)
    truth = plan(recorded, list(cases.values()))
    return [
        [row(*case, *pair) for case, *pair in zip(cases, truth, plan(trace, list(cases.values())), strict=True)]
        for trace in synthetic
    ]


def row(policy: str, dram: float, eviction: str, recorded: FetchPlan, synthetic: FetchPlan) -> Row:
    names = [group.name for group in recorded.groups]
    apart = [hit_rate(synthetic, [name]) - hit_rate(recorded, [name]) for name in names]
    return Row(policy, dram, eviction, hit_rate(recorded, names), hit_rate(synthetic, names), max(apart, key=abs))


def hit_rate(fetch_plan: FetchPlan, groups: Sequence[str]) -> float:
    """Of the bytes that these groups read, the percentage found in their caches."""
    steps = [name in groups for name in fetch_plan.step]
    hits, misses = fetch_plan.dram_hits[:, steps].sum(), fetch_plan.flash_misses[:, steps].sum()
    return float(100 * hits / (hits + misses))


def without(trace: SyntheticTrace, changes: dict[str, float]) -> SyntheticTrace:
    """The trace with these statistics changed, at every depth and in every signal."""
    rows = (
        depth.model_copy(update={name: getattr(depth, name).model_copy(update=changes) for name in TENSORS})
        for depth in trace.statistics
    )
    return replace(trace, statistics=tuple(rows))


def worst(rows: Sequence[Row]) -> float:
    """Largest difference of all, in points, in any group of matrices."""
    return max(max(abs(row.difference), abs(row.worst)) for row in rows)


def tables(found: Sequence[Row], variants: dict[str, float]) -> str:
    """The cases, and the worst of each variant, as markdown."""
    lines = [
        "| policy | DRAM, share of the MLP | eviction | recorded, % | synthetic, % | difference | worst matrix |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        lines.append(
            f"| {row.policy} | {row.dram} | {row.eviction} | {row.recorded:.1f} | {row.synthetic:.1f} "
            f"| {row.difference:+.2f} | {row.worst:+.2f} |"
        )
    lines += ["", "| recipe | largest difference, points |", "|---|---|"]
    lines += [f"| {name} | {points:.2f} |" for name, points in variants.items()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/background/synthesis.md")
    arguments = parser.parse_args()
    shipped = Trace.open(LIKE)
    assert isinstance(shipped, SyntheticTrace)
    traces = {
        "as shipped": shipped,
        "another seed": replace(shipped, recipe=shipped.recipe.model_copy(update={"seed": 1})),
    } | {f"without {name}": without(shipped, changes) for name, changes in LEFT_OUT.items()}
    found = dict(zip(traces, compare(Trace.open(RECORDED), list(traces.values())), strict=True))
    text = tables(found["as shipped"], {name: worst(rows) for name, rows in found.items()})
    print(text)
    if arguments.write:
        page = PAGE.read_text(encoding="utf-8")
        page = re.sub(r"(<!-- table -->\n).*?(\n<!-- end -->)", lambda m: m[1] + text + m[2], page, flags=re.DOTALL)
        PAGE.write_text(page, encoding="utf-8")
    missed = [name for name in ("as shipped", "another seed") if not worst(found[name]) <= BOUND]
    for name in missed:
        print(f"missed: {name}: {worst(found[name]):.2f} points > {BOUND}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
