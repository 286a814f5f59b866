"""The parts that the page is made of. Whatever comes from a file is escaped in here, and nowhere else."""

from __future__ import annotations

import html
import json
import math
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dipsim.basics.errors import is_plain
from dipsim.basics.units import DIMENSIONS, parse, show, significant
from dipsim.results.quality import NOT_MEASURED

LONG = 20  # letters of a cell that may take several lines


class Section(NamedTuple):
    """A part of the page: its id, its heading, and its HTML."""

    name: str
    title: str
    content: str

    def __str__(self) -> str:
        return f'<section id="{self.name}">\n<h2>{escape(self.title)}</h2>\n{self.content}</section>\n'


class Page(NamedTuple):
    """What a folder shows: a heading and a line below it, sections, and the data of its plots by their kind."""

    title: str
    setting: str
    sections: list[Section]
    data: dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it shows, and the number that it is sorted by, None for a text."""

    shown: str
    number: float | None = None

    def __str__(self) -> str:
        if self.number is None:
            kind = ' class="long"' if len(self.shown) > LONG else ""
            return f"<td{kind}>{escape(self.shown)}</td>"
        return f'<td data-n="{self.number:.6g}">{escape(self.shown)}</td>'


def escape(text: object) -> str:
    """A text as HTML shows it, in an element or an attribute; control characters are replaced."""
    return html.escape("".join(letter if is_plain(letter) else "\ufffd" for letter in str(text)))


def cell(value: object, unit: str) -> Cell:
    """A value in its unit, for people. What is no number is shown as it is, nothing as an empty cell."""
    if value is None or unit == "text":
        return Cell("" if value is None else str(value))
    if unit == "as written":
        return Cell(str(value), _written(str(value)))
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return Cell(str(value))
    return Cell(human(number, unit), number) if math.isfinite(number) else Cell(str(value))


def _written(text: str) -> float | None:
    """The number that a value in an experiment stands for, with or without a unit; None if it is none."""
    readers: list[Callable[[str], float]] = [float]
    readers += [partial(parse, dimension=dimension, zero=True) for dimension in DIMENSIONS]
    for read in readers:
        with suppress(ValueError):
            return number if math.isfinite(number := read(text)) else None
    return None


def price(perplexity: object, error: object) -> Cell:
    """A perplexity with its standard error, or that it was not measured."""
    value, spread = cell(perplexity, "perplexity").number, cell(error, "perplexity").number
    if value is None:
        return Cell(NOT_MEASURED)
    return Cell(significant(value, 4) + ("" if spread is None else f" ± {spread:.2f}"), value)


def human(number: float, unit: str) -> str:
    """A finite number with three or four digits, in the prefix that suits it."""
    if unit in ("bytes", "bytes/s", "s"):
        dimension = {"bytes": "size", "bytes/s": "bandwidth", "s": "time"}[unit]
        return show(number, dimension) if number else f"0 {unit.replace('bytes', 'B')}"
    if unit == "J":
        return f"{significant(1e3 * number)} mJ"
    if unit == "share":
        return f"{number:.1%}"
    if abs(number) >= 1e15:
        return f"{number:.3g}"
    if number == int(number):
        return f"{number:,.0f}"
    return significant(number, 4 if unit in ("tokens/s", "perplexity") else 3)


def label(name: str) -> str:
    """A column's name without its unit, which stands in the cells."""
    for unit, short in (("_bytes_per_s", ""), ("_per_", "/"), ("_bytes", ""), ("_j/", "/")):
        name = name.replace(unit, short)
    name = re.sub(r"^(parts_s|setting)\.", "", name)  # what is left is a resource, or an option
    return re.sub(r"[_.]", " ", re.sub(r"_s(?=\.|$)", "", name))


def table(heads: Sequence[tuple[str, str]], rows: Iterable[Sequence[Cell]], name: str) -> str:
    """A table in a container of its own, which scrolls; `heads` are what each column is called, and what it means."""
    rows = list(rows)
    numbers = [any(row[column].number is not None for row in rows) for column in range(len(heads))]
    classes = [' class="n"' if number else "" for number in numbers]
    head = "".join(
        f'<th scope="col"{right} title="{escape(meaning)}">{escape(shown)}</th>'
        for (shown, meaning), right in zip(heads, classes, strict=True)
    )
    body = "\n".join(f"<tr>{''.join(map(str, row))}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">\n'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
    )


def details(title: str, content: str) -> str:
    """A part that opens by a click."""
    return f"<details>\n<summary>{escape(title)}</summary>\n{content}</details>\n"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>\n"


def code(text: str) -> str:
    """A file as it is."""
    return f'<div class="scroll" tabindex="0"><pre>{escape(text)}</pre></div>\n'


def picture(path: Path) -> str:
    """A figure in the page itself. As an image it keeps its ids to itself, runs nothing and loads nothing."""
    kind = {".svg": "svg+xml", ".png": "png"}[path.suffix]
    data = b64encode(path.read_bytes()).decode()
    name = escape(path.stem.replace("_", " "))
    return (
        f'<figure><div class="scroll" tabindex="0"><img alt="Figure: {name}" src="data:image/{kind};base64,{data}">'
        f"</div><figcaption>{name}</figcaption></figure>\n"
    )


def plots(kind: str, captions: Sequence[str], legend: Sequence[tuple[str, str]]) -> str:
    """Places for plots that share one view, which page.js fills; `legend` are the colours' classes and names."""
    keys = "".join(f'<li><i class="{colour}"></i>{escape(name)}</li>' for colour, name in legend)
    figures = "".join(
        f'<figure class="plot"><figcaption>{escape(caption)}</figcaption><canvas tabindex="0" role="application" '
        f'aria-label="{escape(caption)}" aria-describedby="help"></canvas></figure>\n'
        for caption in captions
    )
    tools = "".join(
        f'<button type="button" data-do="{do}" aria-label="{name}">{sign}</button>'
        for do, name, sign in (("in", "zoom in", "+"), ("out", "zoom out", "−"), ("all", "show all", "all"))
    )
    return (
        f'<div class="plots" data-kind="{kind}">\n<div class="tools">{tools}<output aria-live="polite">Point at a bar, '
        f'or tap it.</output></div>\n<ul class="legend">{keys}</ul>\n{figures}</div>\n'
        "<noscript><p>This needs JavaScript. The figures below show the same.</p></noscript>\n"
    )


def data(value: object) -> str:
    """A value as JSON that ends no script, whatever its texts are."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
