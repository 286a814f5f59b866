"""How much a compact trace changes what policies and caches make of it: recorded again in float32 and compared.

    python benchmarks/trace_fidelity.py --model smollm2-135m --text test_clean.txt

Jaccard: of the top-k masks, |both| / |either|, mean over layers and tokens. Hit rates: each layer's masks through a
cache of half its columns, hits / mask, all layers together.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dipsim.basics.errors import InputError
from dipsim.live.record import record
from dipsim.memory.cache import replay
from dipsim.sparsity.ranking import top_k
from dipsim.workload import Trace

SCORES = (("mlp_input", 0.57), ("mlp_input", 0.8), ("glu", 0.35), ("glu", 0.7))
EVICTIONS: tuple[str, ...] = ("lru", "lfu")


@dataclass
class Tally:
    """Sums over the layers for one score and fraction; `hits` by eviction, for (exact, compact)."""

    jaccard: list[float] = field(default_factory=list)
    kept: int = 0
    hits: dict[str, NDArray[np.int64]] = field(default_factory=lambda: {e: np.zeros(2, np.int64) for e in EVICTIONS})


def compare(exact: Trace, compact: Trace) -> list[Tally]:
    """One tally for each of SCORES."""
    tallies = [Tally() for _ in SCORES]
    for layer in range(exact.shape.num_hidden_layers):
        both = exact.layer(layer), compact.layer(layer)
        for (name, fraction), tally in zip(SCORES, tallies, strict=True):
            values = [np.abs(getattr(acts, name)) for acts in both]
            a, b = (top_k(value, int(fraction * value.shape[1])) for value in values)
            tally.jaccard += ((a & b).sum(1) / (a | b).sum(1)).tolist()
            tally.kept += int(a.sum())
            for eviction, hits in tally.hits.items():
                for place, masks in enumerate((a, b)):
                    runs = np.split(masks, exact.sequence_starts[1:])
                    hits[place] += sum(replay(run, run.shape[1] // 2, eviction).sum() for run in runs)
    return tallies


def table(tallies: list[Tally]) -> str:
    """Markdown; hit rates are float32 -> compact (difference)."""
    lines = ["| score | kept | Jaccard | LRU hit rate | LFU hit rate |", "|---|---|---|---|---|"]
    for (name, fraction), tally in zip(SCORES, tallies, strict=True):
        rates = (hits / tally.kept for hits in tally.hits.values())
        cells = " | ".join(f"{a:.4f} -> {b:.4f} ({b - a:+.4f})" for a, b in rates)
        lines.append(f"| abs({name}) | {fraction} | {np.mean(tally.jaccard):.4f} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--trace", help="the trace to judge; default: the shipped one of the model's name")
    parser.add_argument("--text", type=Path, required=True, help="the text from which the trace was recorded")
    args = parser.parse_args()
    compact = Trace.open(args.trace or args.model)
    length = compact.sequence_starts[1] if len(compact.sequence_starts) > 1 else compact.tokens
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "exact.safetensors")
        header = record(args.model, args.text, path, tokens=compact.tokens, sequence_length=length, dtype="float32")
        if header.source["text_sha256"] != compact.header.source.get("text_sha256"):
            raise InputError(f"{args.text}: is not the text that {compact.path} was recorded from")
        print(table(compare(Trace.open(path), compact)))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
