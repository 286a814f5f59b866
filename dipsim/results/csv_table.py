"""Reads a CSV table by what each column holds. Whatever does not fit is one line that names row and column."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dipsim.basics.errors import InputError, is_plain, quoted
from dipsim.basics.files import read_text

LARGEST = 1e30  # of a number: what is more is no result, and figures could not show it
SMALLEST = 1e-30  # of a number that is not 0
LONGEST = 1000  # letters of a text


@dataclass(frozen=True)
class Column:
    """What a column holds: text of `longest` letters at most, or whole or real numbers from `least` to `most`.

    A table without the column has `default` in all rows; without one, that is an error. A number is `empty` where
    nothing or `blank` stands; without that, nothing must be left out. Of kind `object` are numbers if all are, and text
    otherwise.
    """

    kind: type = str
    least: float = -LARGEST
    most: float = LARGEST
    default: Any = None
    empty: float | None = None
    blank: str = ""
    longest: int = LONGEST


TEXT, REAL, POSITIVE, AMOUNT = Column(), Column(float), Column(float, SMALLEST), Column(float, 0)
SHARE = Column(float, 0, 1 + 1e-9)  # as sums are rounded
COUNT, NATURAL = Column(int, 1), Column(int, 0)
ANYTHING = Column(object)
Others = Callable[[str], Column | None]  # the schema of a column by its name; None for one that is not read


def read_table(path: Path, columns: dict[str, Column], others: Others = lambda _: None) -> pd.DataFrame:
    """Read the columns of a table, and `others`, in the file's order.

    Raises InputError if the file cannot be read, holds no row, has a column twice or lacks one, or has a value that its
    column cannot have.
    """
    names, rows = _rows(path)
    if missing := [name for name, column in columns.items() if name not in names and column.default is None]:
        raise InputError(f"{path}: column {missing[0]}: is missing")
    read = {name: columns.get(name) or others(name) for name in names}
    found = {
        name: _values(column, [row[index] for row in rows], f"{path}: column {name}")
        for index, (name, column) in enumerate(read.items())
        if column is not None
    }
    table = pd.DataFrame(found)
    return table.assign(**{name: column.default for name, column in columns.items() if name not in names})


def refuse_rows(path: Path, bad: Iterable[bool], problem: str) -> None:
    """Raise InputError, naming the first of them, if there are bad rows."""
    places = np.flatnonzero(np.asarray(bad, dtype=bool))
    if len(places):
        raise InputError(f"{path}: row {places[0] + 1}: {problem}")


def _rows(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(read_text(path), newline=""), strict=True) if row]
    except csv.Error as error:
        raise InputError(f"{path}: is not CSV ({error})") from None
    names, *rows = rows or [[]]
    if twice := {name for name in names if names.count(name) > 1} if len(names) <= LONGEST else set(names):
        raise InputError(f"{path}: column {quoted(min(twice))}: is there twice, or there are too many")
    if not rows:
        raise InputError(f"{path}: has no rows")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise InputError(f"{path}: row {number}: has {len(row)} of {len(names)} fields")
    return names, rows


def _values(column: Column, texts: list[str], where: str) -> Any:
    """The values of a column. Raises InputError, naming the row, for one that it cannot have."""
    if column.kind is object:
        return found if (found := _numbers(texts)) is not None else _values(TEXT, texts, where)
    if column.kind is str:
        for row, text in enumerate(texts, start=1):
            if len(text) > column.longest or not is_plain(text):
                raise InputError(f"{where}: row {row}: {quoted(text)} is too long, or has letters that cannot be shown")
        return texts
    numbers = [_number(column, text) for text in texts]
    if None in numbers:
        row = numbers.index(None)
        what = f"a {'whole ' * (column.kind is int)}number from {column.least:g} to {column.most:g}"
        raise InputError(f"{where}: row {row + 1}: {quoted(texts[row])} is not {what}")
    return np.array(numbers, dtype=column.kind)


def _number(column: Column, text: str) -> float | None:
    """The number of a text; None if it is not one that the column can have."""
    if column.empty is not None and text in ("", column.blank):
        return column.empty
    try:
        number = float(text)
    except ValueError:
        return None
    within = column.least <= number <= column.most and (number == 0 or abs(number) >= SMALLEST)
    whole = column.kind is not int or (abs(number) < 2**53 and number == int(number))
    return number if within and whole else None


def _numbers(texts: list[str]) -> Any:
    """Whole numbers or real ones, perhaps infinite; None if a text is none."""
    for kind in (int, float):
        try:
            numbers = np.array([kind(text) for text in texts], dtype=kind)
        except (ValueError, OverflowError):
            continue
        return None if np.isnan(numbers).any() else numbers
    return None
