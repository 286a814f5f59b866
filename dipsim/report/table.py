"""What the page shows of answers that are a table: of a sweep, of `solve`, of `plan-memory` and of `compare`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dipsim.figures.solve import read_solve
from dipsim.figures.sweep_table import read_sweep, varies
from dipsim.report import parts
from dipsim.report.parts import Cell, Page, Section, cell
from dipsim.results.compare import read_compare
from dipsim.results.csv_table import TEXT, read_table
from dipsim.results.dictionary import Entry, find
from dipsim.results.split import read_split

WITH_PRICE = "perplexity_standard_error"
HIDDEN = (  # keys, and what another column says as well
    *(WITH_PRICE, "key", "dimension", "column", "limit", "unit", "value"),
    *(f"setting.{name}" for name in ("model", "device", "DRAM", "tokens")),
)
MOST_BYTES = 2_000_000  # of the rows of a table, in the page
NAMED = 3  # models or devices that a title names


class Shown(NamedTuple):
    """The tables of a folder: the one with the answers, its columns that come first, and one with what is behind it.

    A speed never stands without its price.
    """

    check: Callable[[Path], object]  # refuses a folder that is damaged
    setting: str  # fields are those of the first row, and `rows`
    table: str
    first: tuple[str, ...]
    behind: str | None = None


SHOWN = {  # by command
    "sweep": Shown(
        lambda folder: read_sweep(folder / "sweep.csv"),
        "A sweep of {rows} points",
        "sweep.csv",
        ("policy", "tokens_per_s", "perplexity"),
    ),
    "solve": Shown(
        read_solve,
        "The {unknown} for {target}, policy by policy",
        "solve.csv",
        ("case", "answer", "found", "perplexity", "tokens_per_s", "note"),
        "samples.csv",
    ),
    "plan-memory": Shown(
        read_split,
        "The DRAM split evenly over caches, and by what it saves",
        "splits.csv",
        ("policy", "split", "latency_s", "perplexity"),
        "memory.csv",
    ),
    "compare": Shown(
        read_compare,
        "Side by side, policy by policy",
        "compare.csv",
        ("policy", "compared", "tokens_per_s", "ratio", "perplexity"),
    ),
}


def page(folder: Path, command: str) -> Page:
    """What the folder of a command shows. Raises InputError if a table is missing or not one."""
    shown = SHOWN[command]
    shown.check(folder)
    table = _texts(folder / shown.table)
    first = [name for name in shown.first if name in table]
    others = [name for name in map(str, table) if name not in (*first, *HIDDEN)]
    varying = [name for name in others if varies(table[name])]
    same = {name: str(table[name].iloc[0]) for name in others if name not in varying}
    title = f"{_names(table['model'], 'models')} on {_names(table['device'], 'devices')}"
    setting = shown.setting.format_map({**table.iloc[0], "rows": f"{len(table):,}"})
    sections = [Section("answers", "Answers", _rows(table, [*first, *varying], shown.table))]
    if shown.behind is not None:
        further = _texts(folder / shown.behind)
        columns = [name for name in map(str, further) if name not in HIDDEN and varies(further[name])]
        sections.append(
            Section("behind", "Behind them", parts.details(shown.behind, _rows(further, columns, shown.behind)))
        )
    sections.append(Section("same", "The same in all rows", _same(same, shown.table)))
    return Page(title, setting, sections, {})


def _texts(path: Path) -> pd.DataFrame:
    return read_table(path, {}, lambda _: TEXT)


def _names(values: pd.Series[str], many: str) -> str:
    names = list(values.unique())
    return ", ".join(names) if len(names) <= NAMED else f"{len(names)} {many}"


def _entry(file: str, name: str) -> Entry:
    return find(file, name) or Entry(name, "text", "")


def _rows(table: pd.DataFrame, names: list[str], file: str) -> str:
    """These columns of a table, as many rows as a page can hold."""
    heads = [(parts.label(name), f"{name}: {_entry(file, name).meaning}") for name in names]
    errors = table.get(WITH_PRICE, pd.Series("", index=table.index))
    rows: list[list[Cell]] = []
    size = 0
    for (_, row), error in zip(table.iterrows(), errors, strict=True):
        cells = [
            parts.price(row[name], error) if name == "perplexity" else cell(row[name], _entry(file, name).unit)
            for name in names
        ]
        size += sum(len(str(each).encode()) for each in cells)
        if size > MOST_BYTES:
            break
        rows.append(cells)
    note = "" if len(rows) == len(table) else parts.paragraph(f"The first {len(rows):,} of {len(table):,} rows.")
    return parts.table(heads, rows, file) + note


def _same(values: dict[str, str], file: str) -> str:
    rows = [
        [Cell(parts.label(name)), cell(value, _entry(file, name).unit), Cell(_entry(file, name).meaning)]
        for name, value in values.items()
        if value
    ]
    return parts.table([("quantity", ""), ("value", ""), ("meaning", "")], rows, "The same in all rows")
