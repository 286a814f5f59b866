"""Time and memory of planning against tokens, layers and settings, up to a model of 70 billion parameters.

`python benchmarks/scaling.py` draws docs/background/scaling.png and prints what it shows. Every point is a process of
its own, so that its peak memory is its own; times are of the processor.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
PHI3 = {"hidden_size": 5120, "intermediate_size": 17920, "num_attention_heads": 40, "num_key_value_heads": 10}
LLAMA70 = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8}
BASE = {"tokens": 128, "layers": 8, "settings": 4}  # the point that all series pass through
SERIES: dict[str, tuple[int, ...]] = {
    "tokens": (32, 64, 128, 256, 512),
    "layers": (2, 4, 8, 16, 32, 80),
    "settings": (1, 2, 4, 8, 16, 32),
}
MODELS: dict[str, dict[str, int]] = {
    "14B shape (5120, 17920)": PHI3,
    "70B shape (8192, 28672)": LLAMA70,
}


def recipe(folder: Path, sizes: dict[str, int], tokens: int, layers: int) -> Path:
    """A synthetic trace of these sizes."""
    path = folder / "recipe.yaml"
    model = {"name": "scaling", "num_hidden_layers": layers, "vocab_size": 32064, **sizes}
    path.write_text(yaml.safe_dump({"model": model, "tokens": tokens, "like": "smollm2-135m-synthetic"}))
    return path


def point(sizes: dict[str, int], tokens: int, layers: int, settings: int) -> tuple[float, float]:
    """Processor seconds and peak MB of planning dip and dip-ca at several DRAM sizes, in this process."""
    from dipsim.planning.fetch_plan import Setting
    from dipsim.planning.planner import plan
    from dipsim.sparsity.plugins import load_policy
    from dipsim.workload import Trace

    with tempfile.TemporaryDirectory() as folder:
        trace = Trace.open(recipe(Path(folder), sizes, tokens, layers))
        shape = trace.shape
        shares = np.linspace(0.2, 0.9, settings)
        policies = [load_policy(name, keep=0.5) for name in ("dip", "dip-ca")]
        drams = [shape.static_bytes(tokens) + share * shape.mlp_bytes for share in shares]
        begin = time.process_time()
        plan(trace, [Setting(policies[i % 2], dram, "lfu") for i, dram in enumerate(drams)])
    return time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measured(**arguments: Any) -> tuple[float, float]:
    """`point` in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), json.dumps(arguments)]
    paths = {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | paths)
    seconds, memory = json.loads(done.stdout)
    return seconds, memory


def main() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.4), layout="constrained")
    axes = figure.subplots(2, len(SERIES), sharey="row")
    for column, (varied, values) in enumerate(SERIES.items()):
        for (name, sizes), marker in zip(MODELS.items(), "os", strict=True):
            points = [measured(sizes=sizes, **BASE | {varied: value}) for value in values]
            for value, (seconds, memory) in zip(values, points, strict=True):
                print(f"{name}, {value} {varied}: {seconds:.2f} s, {memory:.0f} MB", flush=True)
            for row, label in enumerate(("processor time, s", "peak memory, MB")):
                axis = axes[row, column]
                axis.plot(values, [p[row] for p in points], marker=marker, label=name)
                axis.set(ylabel=label if column == 0 else "")
                axis.grid(alpha=0.3)
        others = ", ".join(f"{value} {key}" for key, value in BASE.items() if key != varied)
        axes[0, column].set_title(others, fontsize=10)
        axes[1, column].set_xlabel(varied)
    for axis in axes.flat:  # last, for a limit once set no longer follows the data
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
    axes[0, 0].legend()
    figure.savefig(ROOT / "docs/background/scaling.png", dpi=120)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(point(**json.loads(sys.argv[1]))))
    else:
        main()
