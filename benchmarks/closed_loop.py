"""How fast the closed loop evaluates a model of a given size: random weights, random tokens, real code.

`python benchmarks/closed_loop.py --device cuda` runs Phi-3-Medium's sizes in bfloat16; `--layers 2` a part of it.
Perplexities of random weights mean nothing and are not printed.
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Phi3Config

from dipsim.live.models import LoadedModel
from dipsim.live.perplexity import measure
from dipsim.live.swiglu import find_mlps
from dipsim.planning.fetch_plan import Setting
from dipsim.sparsity.plugins import load_policy
from dipsim.workload.shape import ModelShape


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", default="cpu")
    options.add_argument("--layers", type=int, default=40)
    options.add_argument("--sequences", type=int, default=2)
    options.add_argument("--length", type=int, default=512)
    given = options.parse_args()
    config = Phi3Config(
        hidden_size=5120,
        intermediate_size=17920,
        num_hidden_layers=given.layers,
        num_attention_heads=40,
        num_key_value_heads=10,
        vocab_size=32064,
        pad_token_id=0,
    )
    with torch.device(given.device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    model.eval()
    shape = ModelShape.from_config(config.to_dict(), name="phi-3-medium, random")
    loaded = LoadedModel(model, None, shape, find_mlps(model), {})
    ids = torch.randint(0, config.vocab_size, (given.sequences, given.length), device=given.device)
    dram = shape.static_bytes(given.length) + 0.5 * shape.mlp_bytes
    print("| policy | tokens/s | hit rate | GPU memory | host memory |\n|---|---|---|---|---|")
    for name, parameters in (("dense", {}), ("dip", {"keep": 0.5}), ("dip-ca", {"keep": 0.5, "gamma": 0.5})):
        setting = Setting(load_policy(name, **parameters), dram)
        begin = time.perf_counter()
        _, (plan,) = measure(loaded, ids, [setting])
        seconds = time.perf_counter() - begin
        hits, read = plan.dram_bytes[:, plan.is_mlp].sum(), (plan.dram_bytes + plan.flash_bytes)[:, plan.is_mlp].sum()
        gpu = torch.cuda.max_memory_allocated() / 1e9 if given.device == "cuda" else 0.0
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        label = setting.policy.label
        print(
            f"| {label} | {ids.numel() / seconds:.1f} | {hits / read:.3f} | {gpu:.1f} GB | {host:.1f} GB |", flush=True
        )


if __name__ == "__main__":
    main()
