"""Open loop against closed loop: the shipped trace, and the pruned model itself, on the same 256 tokens.

`python benchmarks/open_closed.py --text test_clean.txt` prints the table of docs/background/accuracy.md: how far hit
rate, bytes from Flash and tokens/s of a recorded trace are from those of the model whose activations the masks really
change.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dipsim.live.models import load
from dipsim.live.perplexity import measure
from dipsim.live.text import read_tokens
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.results.result import Result
from dipsim.sparsity.plugins import load_policy
from dipsim.timing.device import Device
from dipsim.timing.recurrence import timeline
from dipsim.workload import Trace

POLICIES = (
    ("magnitude", {"fraction": 0.5}),
    ("dip", {"keep": 0.9}),
    ("dip", {"keep": 0.75}),
    ("dip", {"keep": 0.5}),
    ("dip-ca", {"keep": 0.9, "gamma": 0.5}),
    ("dip-ca", {"keep": 0.75, "gamma": 0.5}),
    ("dip-ca", {"keep": 0.5, "gamma": 0.5}),
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--text", type=Path, required=True)
    given = options.parse_args()
    trace, device, loaded = Trace.open("smollm2-135m"), Device.load("paper"), load(given.model)
    ids = read_tokens(loaded, given.text, 1, trace.tokens)
    dram = trace.shape.static_bytes(trace.tokens) + 0.5 * trace.shape.mlp_bytes
    print(
        "| policy | hit rate, open | closed | difference, points | Flash bytes | tokens/s |\n|---|---|---|---|---|---|"
    )
    for name, parameters in POLICIES:
        setting = Setting(load_policy(name, **parameters), dram)
        (recorded,) = plan(trace, [setting])
        _, (live,) = measure(loaded, ids, [setting])
        opened, closed = (Result(p, device, timeline(p, device, "serial")) for p in (recorded, live))
        read = recorded.flash_bytes.sum() / live.flash_bytes.sum() - 1
        speed = opened.tokens_per_s / closed.tokens_per_s - 1
        difference = 100 * (opened.hit_rate - closed.hit_rate)
        rates = f"{opened.hit_rate:.4f} | {closed.hit_rate:.4f} | {difference:+.2f}"
        print(f"| {setting.policy.label} | {rates} | {read:+.2%} | {speed:+.2%} |", flush=True)


if __name__ == "__main__":
    main()
