"""Recipes with the marginals of real models: how large |MLP input| and |GLU| are, by TEAL's histograms.

`python benchmarks/marginals.py` compares what the recipes of three models draw with what was measured, and with what
they would draw with SmolLM2's statistics. It prints the tables of `docs/background/synthesis.md`;
`--write` also puts them and the figure there. `--fit` fits the recipes first and writes them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure
from page import ROOT, Rows, keep, show
from scipy.optimize import minimize

from dipsim.basics.arrays import Float32s, Floats
from dipsim.basics.files import sha256
from dipsim.figures.style import COLOURS, STYLE, blank_figure
from dipsim.planning.planner import plan
from dipsim.results.quality import NOT_MEASURED
from dipsim.results.result import Result
from dipsim.sparsity.plugins import load_policy
from dipsim.study.experiment import Options
from dipsim.timing.device import Device
from dipsim.timing.recurrence import timeline
from dipsim.workload import Trace
from dipsim.workload.fit import LIKE
from dipsim.workload.recipe import Depth, Signal
from dipsim.workload.synthetic import SyntheticTrace, sample_signal, statistics_at
from dipsim.workload.trace import TENSORS, Activations

DATA = ROOT / "benchmarks/data/teal/quantiles.csv"
MODELS = {"llama-3-8b": "Llama-3-8B", "mistral-7b": "Mistral-7B", "llama-2-13b": "Llama-2-13B"}
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95)
# The tensor that a fit of a signal changes, and which of its statistics: limits, and the first step of the search
Changed = Mapping[str, tuple[str, tuple[str, ...]]]
CHANGED: Changed = {"mlp_input": ("mlp_input", ("tail", "scale_spread")), "glu": ("gate_proj", ("scale", "mean"))}
OTHERS: dict[str, Changed] = {  # with less and with more of a neuron's own
    "tails of the noise, scale of the gate": {
        "mlp_input": ("mlp_input", ("tail",)),
        "glu": ("gate_proj", ("scale", "tail")),
    },
    "scales and means of the neurons": {
        "mlp_input": ("mlp_input", ("scale_spread", "mean_spread")),
        "glu": ("gate_proj", ("mean", "mean_spread")),
    },
}
LIMITS = {  # of a statistic, and the first step of the search
    "tail": (0.0, 0.49, 0.05),
    "scale_spread": (0.0, 1.0, 0.05),
    "scale": (0.01, 10.0, 0.2),
    "mean": (-10.0, 10.0, 0.5),
    "mean_spread": (0.0, 10.0, 0.2),
}
NEAR = 1e-4  # what a step away costs, as much as 0.3 % in each of ten quantiles: of equals, the smallest change
NEURONS, TOKENS = 4096, 32  # drawn for a fit
COMPARED, SIMULATED = 32, 64  # tokens
POLICIES = (load_policy("dip", keep=0.5), load_policy("dip-ca", keep=0.5, gamma=0.5))
DEVICES = {"paper": "columns", "oneplus-12": "popularity"}  # each with a layout
WHEN = ("before", "after")
Pair = tuple[SyntheticTrace, SyntheticTrace]  # before and after
Quantiles = dict[str, Floats]  # logarithms over the median [layers, levels], by signal
Compared = tuple[Quantiles, Quantiles, Quantiles]  # measured, before, after


def measured(name: str) -> Quantiles:
    """What was measured of a model."""
    table = pd.read_csv(DATA)
    of_model = table[table["model"] == MODELS[name]].sort_values("layer")
    columns = [f"q{round(100 * level):02d}" for level in LEVELS]
    return {signal: np.log(of_model.loc[of_model["tensor"] == signal, columns].to_numpy()) for signal in CHANGED}


def drawn(trace: Trace) -> Quantiles:
    """The same of what a trace draws."""
    found: dict[str, list[Floats]] = {signal: [] for signal in CHANGED}
    for layer in trace.layers:
        acts = trace.layer(layer, COMPARED)
        for signal, rows in found.items():
            rows.append(log_quantiles(getattr(acts, signal)))
    return {signal: np.array(rows) for signal, rows in found.items()}


def log_quantiles(values: Float32s) -> Floats:
    """Logarithms of the quantiles of |values| over the median."""
    sizes = np.abs(values)
    return np.asarray(np.log(np.quantile(sizes, LEVELS) / np.median(sizes)))


def fitted(trace: SyntheticTrace, changed: Changed = CHANGED) -> SyntheticTrace:
    """The trace with the measured marginals in each layer."""
    name, layers = trace.name, trace.shape.num_hidden_layers
    wanted, rows = measured(name), []
    for layer in range(layers):
        row = shortened(statistics_at(trace.statistics, layer / (layers - 1)))
        rows.append(fit_layer(row, {signal: quantiles[layer] for signal, quantiles in wanted.items()}, changed))
        print(f"{name}: layer {layer + 1} of {layers}", file=sys.stderr)
    return replace(trace, statistics=tuple(rows))


def write(trace: SyntheticTrace) -> None:
    """Write the trace's recipe, with statistics of its own."""
    description = f"Synthetic, the size and marginals of {MODELS[trace.name]}; SmolLM2's popularity and correlation"
    source = {"marginals": "FasterDecoding/TEAL, MIT", "marginals_sha256": sha256(DATA), "all_else": LIKE}
    own = {"description": description, "like": None, "source": source, "statistics": trace.statistics}
    trace.recipe.model_copy(update=own).write(trace.path)


def fit_layer(row: Depth, wanted: Mapping[str, Floats], changed: Changed = CHANGED) -> Depth:
    """The row, with `changed` moved as little as the wanted log-quantiles [levels] of each signal need."""
    up = draw(row.up_proj, 2)

    def error(signal: str, given: Signal) -> float:
        values = draw(given, 0) if signal == "mlp_input" else Activations(None, draw(given, 1), up).glu
        return float(((log_quantiles(values) - wanted[signal]) ** 2).sum())

    found = {
        tensor: nearest(getattr(row, tensor), names, partial(error, signal))
        for signal, (tensor, names) in changed.items()
    }
    return row.model_copy(update=found)


def draw(signal: Signal, seed: int) -> Float32s:
    """Values of a signal; of two signals, from the same random numbers."""
    return sample_signal(signal, TOKENS, NEURONS, np.random.default_rng(seed))


def nearest(start: Signal, names: Sequence[str], error: Callable[[Signal], float]) -> Signal:
    """The signal with a small error, near `start`, of which these statistics are changed."""
    low, high, step = np.array([LIMITS[name] for name in names]).T
    first = np.array([getattr(start, name) for name in names])

    def changed(point: Floats) -> Signal:
        return start.model_copy(update={name: short(value) for name, value in zip(names, point, strict=True)})

    found = minimize(
        lambda point: error(changed(point)) + NEAR * (((point - first) / step) ** 2).sum(),
        first,
        method="Nelder-Mead",
        bounds=list(zip(low, high, strict=True)),
        options={"initial_simplex": np.vstack([first, first + np.diag(step)]), "xatol": 2e-3, "fatol": 1e-6},
    )
    return changed(found.x)


def shortened(row: Depth) -> Depth:
    """The row with four significant digits."""

    def signal(name: str) -> Signal:
        return Signal(**{key: short(value) for key, value in getattr(row, name)})

    return Depth(depth=short(row.depth), **{name: signal(name) for name in TENSORS})


def short(value: float) -> float:
    """Four significant digits, as a recipe has."""
    return float(f"{value:.4g}")


def agreement(found: Mapping[str, Compared]) -> Rows:
    """Errors of log-quantiles over all layers and levels of each model."""
    rows = [["recipe", "signal", *(f"{what} error {when}" for what in ("mean", "largest") for when in WHEN)]]
    for name, (wanted, *both) in found.items():
        for signal in CHANGED:
            errors = [np.abs(each[signal] - wanted[signal]) for each in both]
            values = [error.mean() for error in errors] + [error.max() for error in errors]
            rows.append([f"`{name}`", f"`{signal}`", *(f"{value:.3f}" for value in values)])
    return rows


def changes(pairs: Mapping[str, Pair]) -> Rows:
    """Hit rates and speeds before and after."""
    columns = [f"{what} {when}" for what in ("hit rate", "tokens/s") for when in WHEN]
    rows = [["recipe", "device", "layout", "policy", *columns, "perplexity"]]
    for name, pair in pairs.items():
        for before, after in zip(*map(run, pair), strict=True):
            rates = (f"{100 * result.hit_rate:.1f}%" for result in (before, after))
            speeds = (f"{result.tokens_per_s:.2f}" for result in (before, after))
            at = (before.device.name, f"`{before.plan.setting.layout}`", f"`{before.policy}`")
            rows.append([f"`{name}`", *at, *rates, *speeds, NOT_MEASURED])
    return rows


def others(before: SyntheticTrace) -> Rows:
    """Errors and hit rates on `paper` where a fit changes other statistics."""
    rates = (f"hit rate, `{policy.label}`" for policy in POLICIES)
    rows = [["changed", *(f"mean error of `{signal}`" for signal in CHANGED), *rates, "perplexity"]]
    wanted = measured(before.name)
    for name, changed in OTHERS.items():
        trace = fitted(before, changed)
        cells = [f"{np.abs(found - wanted[signal]).mean():.3f}" for signal, found in drawn(trace).items()]
        cells += [f"{100 * result.hit_rate:.1f}%" for result in run(trace, ("paper",))]
        rows.append([name, *cells, NOT_MEASURED])
    return rows


def run(trace: Trace, devices: Iterable[str] = DEVICES) -> list[Result]:
    """Each policy on each device, half of the MLP in DRAM."""
    cases = []
    for device in map(Device.load, devices):
        options = Options.model_validate({"dram": {"mlp_fraction": 0.5}, "layout": DEVICES[device.name]})
        cases += [(device, setting) for setting in options.settings(POLICIES, trace.shape, SIMULATED, device)]
    plans = plan(trace, [setting for _, setting in cases], SIMULATED)
    return [
        Result(each, device, timeline(each, device, "serial")) for each, (device, _) in zip(plans, cases, strict=True)
    ]


def figure(found: Mapping[str, Compared]) -> Figure:
    """The 95 % quantile over the median in every layer."""
    setting = f"95 % quantile of the magnitude over its median, {COMPARED} tokens drawn · perplexity: {NOT_MEASURED}"
    shown = blank_figure("Marginals of three models", setting, 9, 4.6)
    axes = shown.subplots(len(CHANGED), len(found), sharey="row")
    for column, (name, lines) in enumerate(found.items()):
        for panel, signal in zip(axes[:, column], CHANGED, strict=True):
            looks = zip(lines, ("measured", *WHEN), ("o", "--", "-"), COLOURS, strict=False)
            for quantiles, label, look, colour in looks:
                panel.plot(np.exp(quantiles[signal][:, -1]), look, ms=3, color=colour, label=label)
            panel.set(title=f"{name}: |{signal}|", xlabel="layer")
    axes[0, -1].legend()
    return shown


def opened(name: str) -> SyntheticTrace:
    """A recipe's trace."""
    trace = Trace.open(name)
    assert isinstance(trace, SyntheticTrace)
    return trace


def main() -> int:
    like = opened(LIKE).statistics
    if "--fit" in sys.argv:
        for name in MODELS:
            write(fitted(replace(opened(name), statistics=like)))
    pairs = {name: (replace(opened(name), statistics=like), opened(name)) for name in MODELS}
    found: dict[str, Compared] = {name: (measured(name), drawn(a), drawn(b)) for name, (a, b) in pairs.items()}
    page = ROOT / "docs/background/synthesis.md"
    show({"marginals": agreement(found)}, page)
    with style.context(["default", STYLE]):
        keep(figure(found), "background/synthesis/marginals")
    show({"marginal changes": changes(pairs)}, page)
    show({"other marginals": others(pairs["llama-3-8b"][0])}, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
