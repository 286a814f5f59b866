"""The figures of a run: latency token by token, each policy's speed and price, hit rates, one token's spans."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from dipsim.basics.errors import InputError, did_you_mean, quoted
from dipsim.basics.units import significant, unit_of
from dipsim.figures.style import (
    COLOURS,
    DASHES,
    LUMINANCE,
    MARKERS,
    STYLE,
    blank_figure,
    draw_prices,
    looks_of,
    save_figure,
)
from dipsim.results.folder import Run, read_experts, read_tables, tables_of
from dipsim.results.labels import short
from dipsim.results.result import Result

FEW, DWARFS = 0.05, 1.6  # a share of the tokens, and how much longer they take, so that an axis ends before them
KINDS = {"demand": "", "interrupt": ": interrupted", "guess": ": guesses", "fill": ": fills"}  # what a request is for


def draw_run(folder: Path) -> list[Path]:
    """Draw every figure of a run's folder into it, as PNG and SVG; return the paths written.

    Raises InputError, before anything is written, if the folder's tables are missing or not those of one run.
    """
    runs, (tokens, layers, spans) = read_tables(folder)
    experts = read_experts(folder, runs)
    with style.context(["default", STYLE]):
        figures = {name: draw() for name, draw in _figures(runs, tokens, layers, spans, experts).items()}
        return [path for name, figure in figures.items() for path in save_figure(figure, folder / name)]


def plot(results: Result | Sequence[Result], figure: str = "policies") -> Figure:
    """Draw results that are in memory: those of different policies in one setting, or only one.

    The figures are those of a run's folder: `policies`, `latency`, `hit_rate_by_layer`, `token_gantt` and, of experts,
    `experts_by_layer`. A notebook shows what is returned; `savefig` writes it. Raises InputError for any other figure,
    and for results that are not of one setting.
    """
    runs, (tokens, layers, spans), experts = tables_of([results] if isinstance(results, Result) else results)
    known = _figures(runs, tokens, layers, spans, experts)
    if figure not in known:
        raise InputError(
            f"plot: {quoted(figure)} is not one of the figures {', '.join(known)}{did_you_mean(figure, known)}"
        )
    with style.context(["default", STYLE]):
        return known[figure]()


def _figures(
    runs: list[Run], tokens: pd.DataFrame, layers: pd.DataFrame, spans: pd.DataFrame, experts: pd.DataFrame | None
) -> dict[str, Callable[[], Figure]]:
    """What draws each figure of a run, by its name."""
    return {
        "latency": partial(_latency, runs, tokens),
        "policies": partial(_policies, runs),
        "hit_rate_by_layer": partial(_hit_rate, runs, layers),
        "token_gantt": partial(_gantt, runs, spans),
        **({} if experts is None else {"experts_by_layer": partial(_experts, runs, experts)}),
    }


def _latency(runs: list[Run], table: pd.DataFrame) -> Figure:
    """Latency of every token, stacked by what it waited for; a panel a policy."""
    unit, scale = unit_of(table["latency_s"], "time")
    top = _top(table)
    rows = math.ceil(len(runs) / 4)
    columns = math.ceil(len(runs) / rows)
    figure = _figure("Latency token by token", runs, max(3.2 * columns, 6.5), (3.1 + 0.15 * _lines(runs)) * rows)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    times = [name for name in map(str, table) if name.endswith("_s") and name not in ("start_s", "latency_s")]
    names = [name.removesuffix("_s") for name in times]
    looks = {part: look for part, look in looks_of(names).items() if part in names}
    parts = {part: look for part, look in looks.items() if table[f"{part}_s"].max() > 1e-6 * table["latency_s"].max()}
    for index, (run, axes) in enumerate(zip(runs, grid, strict=False)):
        mine = table[table["policy"] == run.policy]
        mine = pd.concat((mine, mine.tail(1)))  # a stair more, for the right edge of the last
        edges = mine["token"].iloc[0] + np.arange(len(mine)) - 0.5
        below = np.zeros(len(mine))
        for part, (_, colour, hatch) in parts.items():
            above = below + mine[f"{part}_s"].to_numpy() / scale
            axes.fill_between(edges, below, above, step="post", facecolor=colour, edgecolor="white", hatch=hatch, lw=0)
            below = above
        if "stream" in mine:
            for edge in edges[np.diff(mine["stream"], prepend=mine["stream"].iloc[0]) > 0]:
                axes.axvline(edge, color="black", lw=1, ls="--", label="the next stream, side by side with the others")
        axes.set_title(run.label, weight="bold", pad=29)
        mean = f"mean {significant(run.mean_latency_s / scale)} {unit}"
        note = f"{mean} · {significant(run.tokens_per_s)} tokens/s\n{run.price}"
        axes.annotate(note, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", va="bottom")
        axes.set_xlim(edges[0] - 0.02 * len(mine), edges[-1])  # the first token, with a cold cache, is a spike
        if len(beyond := mine.iloc[:-1][mine["latency_s"].iloc[:-1] > top]):
            after = (float(edges[0] + beyond.index.max() - mine.index[0] + 1), 0.985)
            axes.annotate(_clipped(beyond, scale, unit), after, (3, 0), ("data", "axes fraction"), "offset points",
                          va="top", fontsize=8)  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axes.set_xlabel("token" if index + columns >= len(runs) else "")
        axes.set_ylabel(f"latency ({unit})" if index % columns == 0 else "")
    grid[0].set_ylim(0, top / scale)
    for axes in grid[len(runs) :]:
        axes.remove()
    handles = [Patch(facecolor=colour, edgecolor="white", hatch=hatch, lw=0) for _, colour, hatch in parts.values()]
    names = [name for name, *_ in parts.values()]
    streams, labels = grid[0].get_legend_handles_labels()
    handles, names = [*handles, *streams[:1]], [*names, *labels[:1]]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def _top(table: pd.DataFrame) -> float:
    """Where the axis of latencies ends, in seconds: beyond all tokens, unless a few, as the first, dwarf the rest."""
    rank = table.groupby("policy")["latency_s"].rank(method="first", ascending=False)
    few = rank <= (table.groupby("policy")["latency_s"].transform("size") * FEW).clip(lower=1)
    highest, rest = table["latency_s"].max(), table.loc[~few, "latency_s"].max()
    return float(1.25 * rest if highest > DWARFS * rest > 0 else 1.05 * highest or 1)


def _clipped(tokens: pd.DataFrame, scale: float, unit: str) -> str:
    """What a panel says of tokens that it does not show whole."""
    first, highest = tokens["token"].iloc[0], significant(tokens["latency_s"].max() / scale)
    return f"← {f'token {first}:' if len(tokens) == 1 else f'{len(tokens)} tokens up to'} {highest} {unit}"


def _policies(runs: list[Run]) -> Figure:
    """Speed, hit rate, share of the MLP read, energy if known, and the price, in panels that share their rows."""
    dense = next((run.tokens_per_s for run in runs if run.policy == "dense"), None)
    speeds = [run.tokens_per_s for run in runs]
    labels = [significant(speed) + (f" ({speed / dense:.2f}x)" if dense else "") for speed in speeds]
    energies = [run.energy_j_per_token or 0.0 for run in runs]
    joule, factor = ("mJ", 1e3) if max(energies) < 1 else ("J", 1.0)
    panels: tuple[tuple[str, str, str, list[float], list[str] | None], ...] = (  # title, colour, hatch, lengths, texts
        ("speed (tokens/s)", "#0072B2", "", speeds, labels),
        ("hit rate (%)", "#56B4E9", "", [100 * run.hit_rate for run in runs], None),
        ("MLP fraction read (%)", "#56B4E9", "", [100 * run.mlp_fraction_read for run in runs], None),
        *(
            ((f"energy ({joule}/token)", "#E69F00", "....", [factor * each for each in energies], None),)
            if any(energies)
            else ()
        ),
    )
    figure = _figure("Speed, and its price", runs, 12, 0.7 + max(0.45, 0.18 * _lines(runs)) * len(runs))
    *grid, last = figure.subplots(1, len(panels) + 1, sharey=True, width_ratios=(1.4, *[1] * len(panels)))
    for axes, (title, colour, hatch, lengths, texts) in zip(grid, panels, strict=True):
        bars = axes.barh(range(len(runs)), lengths, 0.66, color=colour, edgecolor="white", lw=0, hatch=hatch)
        axes.bar_label(bars, texts, fmt="{:.1f}", padding=3)
        axes.set_title(title)
        axes.set_xlim(0, 130 if "%" in title else 1.35 * max(lengths) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 2.5, 5, 10)) if any(lengths) else NullLocator())
        axes.xaxis.set_major_formatter("{x:,g}")
    measured = [(run.perplexity, run.perplexity_standard_error) for run in runs]
    draw_prices(last, *np.array(measured, dtype=float).T)
    for axes in (*grid, last):
        axes.tick_params(axis="y", length=0, grid_linewidth=0)  # names of rows need neither
    grid[0].set_yticks(range(len(runs)), [run.label for run in runs])
    grid[0].invert_yaxis()
    return figure


def _hit_rate(runs: list[Run], table: pd.DataFrame) -> Figure:
    """Hit rate of every layer, a line a policy; the legend in the order in which the lines end."""
    figure = _figure("Hit rate layer by layer", runs, 9.5, max(3.6, 0.4 + (0.3 + 0.16 * _lines(runs)) * len(runs)))
    axes = figure.subplots()
    ends = []
    looks = zip(runs, cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False)
    for index, (run, colour, marker, dash) in enumerate(looks):
        mine = table[table["policy"] == run.policy]
        step = max(1, len(mine) // 8)
        axes.plot(
            mine["layer"],
            100 * mine["hit_rate"],
            marker + dash,
            color=colour,
            markersize=8 - index % 8 / 2,
            markevery=(index % step, step),  # staggered and shrinking, so that lines on top of each other show
            label=f"{run.label}\n{run.hit_rate:.1%} overall, {run.price}",
        )
        ends.append(mine["hit_rate"].iloc[-1])
    axes.set_xlabel("layer")
    of = "experts used" if runs[0].scope else "the MLP bytes read"
    axes.set_ylabel(f"hit rate (% of {of})")
    axes.set_ylim(max(axes.get_ylim()[0], -0.5), min(axes.get_ylim()[1], 100.5))
    axes.set_xlim(table["layer"].min() - 0.5, table["layer"].max() + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    lines = [axes.lines[index] for index in np.argsort(ends, kind="stable")[::-1]]
    axes.legend(handles=lines, loc="upper left", bbox_to_anchor=(1, 1.02), labelspacing=0.9, handlelength=4)
    return figure


def _experts(runs: list[Run], table: pd.DataFrame) -> Figure:
    """How many tokens use each expert, from the most to the least used of each layer; a panel a policy."""
    columns = min(3, len(runs))
    rows = math.ceil(len(runs) / columns)
    figure = _figure("Experts used, layer by layer", runs, max(3.6 * columns + 1, 6.5), 3.3 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    image = None
    for index, (run, axes) in enumerate(zip(runs, grid, strict=False)):
        uses = table[table["policy"] == run.policy].pivot_table(index="layer", columns="expert", values="tokens")
        shares = np.sort(100 * uses.to_numpy() / run.tokens, axis=1)[:, ::-1]
        image = axes.imshow(shares, cmap="viridis", aspect="auto", interpolation="nearest", norm=PowerNorm(0.5, 0, 100))
        layers = np.linspace(0, len(uses) - 1, min(len(uses), 7)).astype(int)
        axes.set_yticks(layers, uses.index[layers])
        axes.grid(visible=False)
        used = significant(float((uses.to_numpy() > 0).sum(axis=1).mean()))
        axes.set_title(f"{run.label}\n{used} experts of a layer used\n{run.price}")
        axes.set_xlabel("expert of the layer, from the most used" if index + columns >= len(runs) else "")
        axes.set_ylabel("layer" if index % columns == 0 else "")
    for axes in grid[len(runs) :]:
        axes.remove()
    assert image is not None
    figure.colorbar(image, ax=list(grid[: len(runs)]), label="tokens that use it (%)", pad=0.01)
    return figure


def _gantt(runs: list[Run], table: pd.DataFrame) -> Figure:
    """The requests of one token, a row a resource: all of them, and enlarged those of the first three layers."""
    unit, scale = unit_of([table["end_s"].max()], "time")
    table = table.assign(start=table["start_s"] / scale, end=table["end_s"] / scale)
    first = table.sort_values("start", kind="stable").drop_duplicates(["policy", "step"])
    order = first.groupby("policy").cumcount().groupby(first["step"]).max()  # as within a layer, and lm_head last
    steps = list(order.sort_values(kind="stable").index)
    colours = dict(zip(steps, colormaps["viridis"](np.linspace(0, 0.92, len(steps))), strict=True))
    near = table[(table["layer"] < 3) & (table["step"] != "lm_head")]
    windows = (table["end"].max(), (table if near.empty else near)["end"].max())

    rows = table[["policy", "resource", "kind"]].drop_duplicates()
    title, height = f"Token {table['token'].iloc[0]}, request by request", 1 + 0.4 * len(runs) + 0.24 * len(rows)
    figure = _figure(title, runs, 13, height)
    panels = figure.subplots(1, 2, sharey=True, width_ratios=(1.2, 1))
    ticks: dict[float, str] = {}
    y = 0.0
    for run in runs:
        mine = table[table["policy"] == run.policy]
        heading = f"{short(run.policy)} · {significant(mine['end'].max())} {unit} · {run.price}"
        panels[0].text(0, y, heading, weight="bold", va="center", in_layout=False)  # may reach into the next panel
        for (resource, (name, *_)), kind in product(looks_of(table["resource"].unique()).items(), KINDS):
            if len(row := mine[(mine["resource"] == resource) & (mine["kind"] == kind)]):
                y += 1
                ticks[y] = name + KINDS[kind]
                for axes, window in zip(panels, windows, strict=True):
                    _bars(axes, y, row, window, colours, named=axes is panels[1])
        y += 1.5
    titles = ("all requests", "the grey part enlarged, with layer numbers")
    for axes, window, title in zip(panels, windows, titles, strict=True):
        axes.set_title(title)
        axes.set_xlim(0, window)
        axes.set_xlabel(f"time from the token's start ({unit})")
        axes.tick_params(axis="y", length=0, grid_linewidth=0)  # names of rows need neither
        axes.spines["left"].set_visible(False)
        axes.patch.set_visible(False)
    panels[0].axvspan(0, windows[1], color="0.93", zorder=0)
    panels[0].set_yticks(list(ticks), ticks.values())
    panels[0].set_ylim(y - 0.7, -0.8)
    handles = [Patch(facecolor=tuple(colour)) for colour in colours.values()]
    figure.legend(handles, list(colours), loc="outside lower center", ncols=len(steps))
    return figure


def _bars(axes: Axes, y: float, row: pd.DataFrame, window: float, colours: dict[str, Any], named: bool) -> None:
    """Bars at least a pixel wide. Wide ones end a pixel early, so that neighbours stay apart, and may bear a name."""
    row = row[(row["start"] < window) & (row["end"] > 0)]
    row = row.assign(start=row["start"].clip(lower=0))  # a guess may begin before its token
    pixel, width = window / 800, (row["end"] - row["start"]).to_numpy()
    width = np.maximum(pixel, width - pixel * (width > 5 * pixel))
    shades = [colours[step] for step in row["step"]]
    axes.broken_barh(list(zip(row["start"], width, strict=True)), (y - 0.42, 0.84), facecolors=shades, lw=0)
    for step, layer, start, end in row[["step", "layer", "start", "end"]].itertuples(index=False) if named else ():
        end = min(end, window)
        names = [name for name in (f"{step} {layer}", f"{layer}") if len(name) < 88 * (end - start) / window]
        ink = "white" if colours[step][:3] @ LUMINANCE < 0.5 else "black"
        if names:
            axes.text(
                (start + end) / 2, y, names[0], color=ink, size=7, ha="center", va="center_baseline", in_layout=False
            )


def _lines(runs: list[Run]) -> int:
    """Lines of the longest label."""
    return max(run.label.count("\n") + 1 for run in runs)


def _figure(title: str, runs: list[Run], width: float, height: float) -> Figure:
    """A figure headed by the setting of the runs."""
    return blank_figure(title, runs[0].setting, width, height)
