"""What the page shows of a sweep: a row a point, without what is the same in all of them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from dipsim.figures.sweep_table import read_sweep, varies
from dipsim.report import parts
from dipsim.report.parts import Cell, Page, Section, cell
from dipsim.results.csv_table import TEXT, read_table
from dipsim.results.dictionary import Entry, find

FIRST = ("policy", "tokens_per_s", "perplexity")  # of the columns; a speed never stands without its price
WITH_PRICE, KEY = "perplexity_standard_error", "key"
MOST_BYTES = 2_000_000  # of the rows, in the page
NAMED = 3  # models or devices that a title names


def page(folder: Path) -> Page:
    """What a sweep's folder shows. Raises InputError if its table is missing or not one."""
    read_sweep(folder / "sweep.csv")  # which refuses what is no sweep's
    table = read_table(folder / "sweep.csv", {}, lambda _: TEXT)
    others = [name for name in map(str, table) if name not in (*FIRST, WITH_PRICE, KEY)]
    varying = [name for name in others if varies(table[name])]
    same = {name: str(table[name].iloc[0]) for name in others if name not in varying}
    title = f"{_names(table['model'], 'models')} on {_names(table['device'], 'devices')}"
    shown = [
        Section("points", "Points", _points(table, [*FIRST, *varying])),
        Section("same", "The same in all points", _same(same)),
    ]
    return Page(title, f"A sweep of {len(table):,} points", shown, {})


def _names(values: pd.Series[str], many: str) -> str:
    names = list(values.unique())
    return ", ".join(names) if len(names) <= NAMED else f"{len(names)} {many}"


def _entry(name: str) -> Entry:
    return find("sweep.csv", name) or Entry(name, "text", "")


def _points(table: pd.DataFrame, names: list[str]) -> str:
    """The rows of the table, as many as a page can hold."""
    heads = [(parts.label(name), f"{name}: {_entry(name).meaning}") for name in names]
    errors = table.get(WITH_PRICE, pd.Series("", index=table.index))
    rows: list[list[Cell]] = []
    size = 0
    for (_, row), error in zip(table.iterrows(), errors, strict=True):
        cells = [
            parts.price(row[name], error) if name == "perplexity" else cell(row[name], _entry(name).unit)
            for name in names
        ]
        size += sum(len(str(each).encode()) for each in cells)
        if size > MOST_BYTES:
            break
        rows.append(cells)
    note = "" if len(rows) == len(table) else parts.paragraph(f"The first {len(rows):,} of {len(table):,} points.")
    return parts.table(heads, rows, "Points of the sweep") + note


def _same(values: dict[str, str]) -> str:
    rows = [
        [Cell(parts.label(name)), cell(value, _entry(name).unit), Cell(_entry(name).meaning)]
        for name, value in values.items()
        if value
    ]
    return parts.table([("quantity", ""), ("value", ""), ("meaning", "")], rows, "The same in all points")
