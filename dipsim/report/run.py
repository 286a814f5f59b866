"""What the page shows of a run: its policies side by side, one token in slow motion, the latency of every token."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic_core import from_json

from dipsim.basics.files import read_text
from dipsim.basics.units import show, significant
from dipsim.report import parts
from dipsim.report.parts import Cell, Page, Section, cell
from dipsim.results.dictionary import find, flatten
from dipsim.results.folder import Run, read_tables
from dipsim.results.perfetto import SHOWN
from dipsim.timing.timeline import RESOURCES

SUMMARY = (  # what the table of policies shows besides speed, price and what took the time
    *("latency_s.mean", "latency_s.p95", "ttft_s", "hit_rate", "mlp_fraction_read", "flash_bytes_per_token"),
    *("dram_bytes_per_token", "flash_reads_per_token", "mean_read_bytes", "peak_dram_bytes", "energy_j_per_token"),
)
MOST_SPANS = 20_000  # that a page can hold
MOST_BARS = 20_000
NAMES = SHOWN | {"wait": "waiting"}
COLOURS = 7  # the classes c0 to c6 of page.css; c7 is grey
Figures = dict[str, object]  # of one run, by their names in the dictionary


def page(folder: Path) -> Page:
    """What a run's folder shows. Raises InputError if its tables are missing or not those of one run."""
    runs, (tokens, _, spans) = read_tables(folder)
    found = [flatten(each) for each in from_json(read_text(folder / "summary.json"))]
    drawn, of_token = _token(runs, spans)
    lines, of_latency = _latency(runs, tokens)
    shown = [
        Section("policies", "Policies", _policies(runs, found)),
        Section("token", f"Token {spans['token'].iloc[0]}, request by request", drawn),
        Section("latency", "Latency token by token", lines),
        Section("summary", "Every quantity", _everything(runs, found)),
    ]
    title = f"{found[0].get('model', 'A run')} on {runs[0].device}"
    return Page(title, runs[0].setting, shown, {"token": of_token, "latency": of_latency})


def _unit(name: str) -> str:
    entry = find("summary.json", name)
    return "text" if entry is None else entry.unit


def _meaning(name: str) -> str:
    entry = find("summary.json", name)
    return "" if entry is None else entry.meaning


def _name(resource: str) -> str:
    return NAMES.get(resource, resource)


def _policies(runs: list[Run], found: list[Figures]) -> str:
    """A row a policy: its price beside its speed. What no run has is left out."""
    names = [name for name in SUMMARY if any(each.get(name) is not None for each in found)]
    waits = [name for name in found[0] if name.startswith("parts_s.") and any(each.get(name) for each in found)]
    dense = next((run.tokens_per_s for run in runs if run.policy == "dense"), None)
    heads = [("policy", ""), ("tokens/s", _meaning("tokens_per_s")), ("perplexity", _meaning("perplexity"))]
    heads += [("speed-up", "Over dense, in the same DRAM.")] if dense else []
    heads += [(f"{_name(name.partition('.')[2])} time", _meaning(name)) for name in waits]
    heads += [(parts.label(name), _meaning(name)) for name in names]
    rows = []
    for run, each in zip(runs, found, strict=True):
        row = [Cell(run.policy), cell(run.tokens_per_s, "tokens/s")]
        row += [parts.price(run.perplexity, each.get("perplexity_standard_error"))]
        row += [Cell(f"{run.tokens_per_s / dense:.2f}x", run.tokens_per_s / dense)] if dense else []
        seconds = [cell(each.get(name), "s").number or 0.0 for name in waits]
        row += [cell(part / run.mean_latency_s if run.mean_latency_s else None, "share") for part in seconds]
        rows.append([*row, *(cell(each.get(name), _unit(name)) for name in names)])
    return parts.table(heads, rows, "Policies")


def _everything(runs: list[Run], found: list[Figures]) -> str:
    """A row a field of `summary.json`, a column a policy with its price."""
    heads = [("quantity", ""), *((f"{run.policy} ({run.price})", "") for run in runs), ("meaning", "")]
    names = dict.fromkeys(name for each in found for name in each if name != "policy")
    rows = [[Cell(name), *(_value(name, each) for each in found), Cell(_meaning(name))] for name in names]
    return parts.details("All that summary.json has", parts.table(heads, rows, "Every quantity"))


def _value(name: str, each: Figures) -> Cell:
    value = each.get(name)
    return parts.price(value, None) if name == "perplexity" else cell(value, _unit(name))


def _token(runs: list[Run], spans: pd.DataFrame) -> tuple[str, Any]:
    """The requests of one token, a row a resource, and what each kind of step took in all."""
    first = dict.fromkeys(spans.sort_values("start_s", kind="stable")["step"])
    steps = {step: index for index, step in enumerate(first)}
    by_policy = dict(list(spans.groupby("policy")))
    lengths = pd.Series({run.policy: len(by_policy[run.policy]) for run in runs}).cumsum()
    drawn = [run for run in runs if lengths[run.policy] <= MOST_SPANS]
    rows, boxes = [], []
    for run in drawn:
        mine = by_policy[run.policy]
        tracks = sorted(set(zip(mine["resource"], mine["kind"], strict=True)), key=_place)
        rows.append([_name(resource) + ("" if kind == "demand" else f": {kind}") for resource, kind in tracks])
        row = [tracks.index(track) for track in zip(mine["resource"], mine["kind"], strict=True)]
        times = ((1e6 * mine[name]).round(3) for name in ("request_s", "start_s", "end_s"))
        parted = (row, mine["layer"], mine["step"].map(steps), *times, mine["bytes"])
        boxes.append([list(box) for box in zip(*parted, strict=True)])
    captions = [
        f"{run.policy} · this token {show(by_policy[run.policy]['end_s'].max(), 'time')} · {run.price}" for run in drawn
    ]
    legend = [(f"c{index % COLOURS}", step) for step, index in steps.items()]
    content = parts.plots("token", captions, legend) if drawn else ""
    if len(drawn) < len(runs):
        content += parts.paragraph(f"{len(runs) - len(drawn)} of {len(runs)} policies are in spans.csv only.")
    content += parts.details("What it took, step by step", _totals(spans))
    return content, {"rows": rows, "steps": list(steps), "spans": boxes}


def _place(track: tuple[str, str]) -> tuple[int, str, bool, str]:
    """Where a row of a token stands: Flash, DRAM, compute, then a device's own; of each first what it waits for."""
    resource, kind = track
    return (*RESOURCES, resource).index(resource), resource, kind != "demand", kind


def _totals(spans: pd.DataFrame) -> str:
    """A row for each kind of request and step."""
    heads = [("policy", ""), ("resource", ""), ("kind", ""), ("step", ""), ("requests", "")]
    heads += [("service", "The seconds that they were served, in all."), ("bytes", "")]
    by = ["policy", "resource", "kind", "step"]
    totals = spans.assign(seconds=spans["end_s"] - spans["start_s"]).groupby(by, sort=False)
    rows = []
    for (policy, resource, kind, step), mine in totals:
        row = [Cell(str(name)) for name in (policy, _name(str(resource)), kind, step)]
        row += [cell(len(mine), "number"), cell(mine["seconds"].sum(), "s"), cell(mine["bytes"].sum(), "bytes")]
        rows.append(row)
    return parts.table(heads, rows, "What one token took")


def _latency(runs: list[Run], tokens: pd.DataFrame) -> tuple[str, Any]:
    """The latency of every token by what it waited for; neighbours are taken together where there are too many."""
    columns = [name for name in map(str, tokens) if name.endswith("_s") and name not in ("start_s", "latency_s")]
    columns = [name for name in columns if tokens[name].max() > 1e-6 * tokens["latency_s"].max()]
    step = math.ceil(len(tokens) / MOST_BARS)
    bars = []
    for run in runs:
        mine = 1e6 * tokens.loc[tokens["policy"] == run.policy, columns].reset_index(drop=True)
        means = mine.groupby(mine.index // step).mean()
        bars.append([[float(f"{value:.6g}") for value in row] for row in means.itertuples(index=False)])
    captions = [f"{run.policy} · {significant(run.tokens_per_s)} tokens/s · {run.price}" for run in runs]
    names = [name.removesuffix("_s") for name in columns]
    colours = ["c7" if name == "wait" else f"c{index % COLOURS}" for index, name in enumerate(names)]
    content = parts.plots("latency", captions, list(zip(colours, map(_name, names), strict=True)))
    if step > 1:
        content += parts.paragraph(f"A bar is the mean of {step} tokens; tokens.csv has each.")
    return content, {"parts": [_name(name) for name in names], "step": step, "bars": bars}
