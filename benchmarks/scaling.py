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
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def draw(found: dict[tuple[str, str], list[tuple[float, float]]]) -> Figure:
    """Time and memory of the points of each series and model, a column a series."""
    from dipsim.figures.style import COLOURS, DASHES, MARKERS, blank_figure  # a point's memory is without matplotlib

    setting = "dip and dip-ca at several DRAM sizes, layout columns, eviction lfu; synthetic traces"
    figure = blank_figure("Time and memory of planning", setting, 10, 5)
    axes = figure.subplots(2, len(SERIES), sharey="row")
    for column, (varied, values) in zip(axes.T, SERIES.items(), strict=True):
        for model, colour, marker, dash in zip(MODELS, COLOURS, MARKERS, DASHES, strict=False):
            for axis, measures in zip(column, zip(*found[varied, model], strict=True), strict=True):
                axis.plot(values, measures, color=colour, marker=marker, ls=dash, ms=5, label=model)
        column[0].set_title(", ".join(f"{value} {key}" for key, value in BASE.items() if key != varied))
        column[1].set_xlabel(varied)
    for axis, label in zip(axes[:, 0], ("processor time (s)", "peak memory (MB)"), strict=True):
        axis.set_ylabel(label)
    for axis in axes.flat:  # last, for a limit once set no longer follows the data
        axis.set(xlim=(0, None), ylim=(0, None))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(MODELS))
    return figure


def main() -> None:
    from matplotlib import style

    from dipsim.figures.style import METADATA, STYLE

    found = {}
    for varied, values in SERIES.items():
        for name, sizes in MODELS.items():
            found[varied, name] = [measured(sizes=sizes, **BASE | {varied: value}) for value in values]
            for value, (seconds, memory) in zip(values, found[varied, name], strict=True):
                print(f"{name}, {value} {varied}: {seconds:.2f} s, {memory:.0f} MB", flush=True)
    with style.context(["default", STYLE]):
        draw(found).savefig(ROOT / "docs/background/scaling.png", metadata=METADATA["png"])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(point(**json.loads(sys.argv[1]))))
    else:
        main()
