"""Writes the tables of a folder of results: as .csv, and as .parquet too where that is asked for."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from dipsim.basics.errors import InputError
from dipsim.basics.files import write


def check_parquet() -> None:
    """Raise InputError if nothing here can write .parquet files."""
    if find_spec("pyarrow") is None:
        raise InputError("--parquet: pyarrow is not installed; run `pip install 'dipsim[parquet]'`")


def write_table(path: Path, table: pd.DataFrame, parquet: bool = False) -> None:
    """Write a table to a .csv file, whole or not at all, and with `parquet` the same to a .parquet file beside it.

    Without `parquet` none stays there: it would be another table. Raises InputError if a file cannot be written.
    """
    beside = path.with_suffix(".parquet")
    beside.unlink(missing_ok=True)
    write(path, table.to_csv(index=False))
    if parquet:
        write(beside, partial(table.apply(_of_one_type).to_parquet, index=False))


def _of_one_type(values: pd.Series) -> pd.Series:
    """A column as .parquet can hold it: numbers where nothing is known, and text where there are several types."""
    if values.dtype != object:
        return values
    return values.astype(float) if values.isna().all() else values.where(values.isna(), values.astype(str))
