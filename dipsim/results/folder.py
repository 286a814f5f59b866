"""The output folder of a run: its tables are written, and read back to be drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import AliasPath, Field, TypeAdapter, ValidationError

from dipsim.basics.errors import InputError, quoted
from dipsim.basics.fields import Strict, complain
from dipsim.basics.files import read_text, remove_temporary, write
from dipsim.basics.units import show
from dipsim.results import perfetto
from dipsim.results.csv_table import (
    AMOUNT,
    LARGEST,
    LONGEST,
    NATURAL,
    REAL,
    SHARE,
    SMALLEST,
    TEXT,
    Column,
    read_table,
    refuse_rows,
)
from dipsim.results.dictionary import COLUMNS, write_columns
from dipsim.results.labels import short, wrapped
from dipsim.results.quality import rounded
from dipsim.results.result import Result, shown_token
from dipsim.results.table_files import write_table
from dipsim.timing.timeline import BREAKDOWN

EXPERTS = "experts.csv"  # in the folder of a model that has experts
COMMANDS = {  # which command wrote a folder, by the table that has its answers
    "sweep.csv": "sweep",
    "solve.csv": "solve",
    "splits.csv": "plan-memory",
    "compare.csv": "compare",
    "summary.json": "run",
}
FROM_EXPERIMENT = ("run", "sweep", "plan-memory")  # and nothing else that a folder does not tell
FIGURES = (  # by the names that they are drawn under
    *("latency", "policies", "hit_rate_by_layer", "token_gantt", "experts_by_layer", "memory", "solve", "compare"),
    *("dram", "flash", "prefetch", "drafts", "speed", "speed_*", "speedup", "speedup_*", "winner", "winner_*"),
)
OTHERS = ("samples.csv", "memory.csv", "timeline.json", "replay.csv", COLUMNS, "provenance.json", "report.html")
TABLES: dict[str, dict[str, Column]] = {  # the columns that are read back
    "tokens.csv": {"policy": TEXT, "token": NATURAL, "latency_s": AMOUNT} | {f"{part}_s": AMOUNT for part in BREAKDOWN},
    "layers.csv": {"policy": TEXT, "layer": NATURAL, "hit_rate": SHARE},
    "spans.csv": {"policy": TEXT, "resource": TEXT, "kind": Column(default="demand"), "step": TEXT}  # as of version 0.1
    | {"token": NATURAL, "layer": NATURAL, "request_s": REAL, "start_s": REAL, "end_s": REAL, "bytes": AMOUNT},
    EXPERTS: {"policy": TEXT, "layer": NATURAL, "expert": NATURAL, "tokens": NATURAL},
}
COUNTED = {"tokens.csv": "token", "layers.csv": "layer", EXPERTS: "expert"}  # what counts from 0 within a policy


def command_of(folder: Path) -> str:
    """The command that wrote an output folder; `run` where nothing tells."""
    return next((command for table, command in COMMANDS.items() if (folder / table).is_file()), "run")


@contextmanager
def made_again(folder: Path, command: str) -> Iterator[None]:
    """Add to a complaint about what `command` wrote to a folder how that is made again."""
    try:
        yield
    except InputError as error:
        source = folder / "experiment.yaml"
        whole = f" {source} --out {folder}" if command in FROM_EXPERIMENT and source.is_file() else ""
        raise InputError(f"{error}; run `python -m dipsim {command}{whole}` again") from None


def clear_results(folder: Path) -> None:
    """Remove what an earlier command found, but not the points of a sweep, from which its table can be made again.

    So a folder never has one experiment beside the answers of another.
    """
    remove_temporary(folder)
    figures = [file for name in FIGURES for kind in ("png", "svg") for file in folder.glob(f"{name}.{kind}")]
    copies = [(folder / name).with_suffix(".parquet") for name in (*TABLES, "sweep.csv")]
    for file in (*figures, *copies, *(folder / name for name in (*TABLES, *OTHERS, *COMMANDS))):
        if file.is_file():
            file.unlink(missing_ok=True)


def write_tables(results: Sequence[Result], out: Path, timeline: bool = False, parquet: bool = False) -> None:
    """Write the tables of a run to a folder, each whole or not at all, and what their columns mean; with `timeline`
    also `timeline.json`.

    With `parquet` each table is written as .parquet too. `summary.json` is written last: a folder without it is not
    finished.
    """
    tables = _tables(results)
    for name, table in tables.items():
        write_table(out / name, table, parquet)
    write_columns(out, (*tables, "summary.json"))
    if timeline:
        write(out / "timeline.json", partial(perfetto.write_events, results))
    write_summary(results, out)


def _tables(results: Sequence[Result]) -> dict[str, pd.DataFrame]:
    """The tables of a run, by the names of their files."""
    tables = {
        "tokens.csv": [result.tokens() for result in results],
        "layers.csv": [result.layers() for result in results],
        "spans.csv": [result.spans(shown_token(result.plan.rows)) for result in results],
    }
    experts = [table for result in results if (table := result.experts()) is not None]
    parts = tables | ({EXPERTS: experts} if experts else {})
    return {name: pd.concat(each, ignore_index=True) for name, each in parts.items()}


def write_summary(results: Sequence[Result], out: Path) -> None:
    """Write `summary.json`, one object a run."""
    write(out / "summary.json", json.dumps([result.summary() for result in results], indent=2) + "\n")


Text = Annotated[str, Field(max_length=LONGEST)]
Name = Annotated[str, Field(max_length=LONGEST, pattern=r"^\P{C}*$")]  # without control characters
Amount = Annotated[float, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(ge=SMALLEST, le=LARGEST)]
Share = Annotated[float, Field(ge=0, le=SHARE.most)]


class Run(Strict, extra="ignore"):
    """What figures show of one run in `summary.json`."""

    policy: Text
    model: Text = ""  # as in folders of version 0.1
    device: Text
    start: Text = "cold"
    layout: Text = "columns"
    eviction: Text
    timing: Text
    dram_bytes: Amount
    tokens: Annotated[int, Field(gt=0, le=10**9)]
    scope: Text | None = None  # of a cache of experts
    on_clock: Text | None = None
    working_set_bytes: Amount | None = None
    tokens_per_s: Positive
    mean_latency_s: Amount = Field(validation_alias=AliasPath("latency_s", "mean"))
    parts_s: dict[Name, Amount] = Field(default_factory=dict)  # what a token waits for, the mean
    flash_s: Amount | None = Field(None, validation_alias=AliasPath("busy_s", "flash"))
    hit_rate: Share
    mlp_fraction_read: Amount
    energy_j_per_token: Amount | None = None
    perplexity: Positive | None = None
    perplexity_standard_error: Amount | None = None

    @property
    def label(self) -> str:
        """The policy, in lines that fit beside a figure."""
        return wrapped(self.policy)

    @property
    def price(self) -> str:
        """The perplexity, with its name."""
        return f"perplexity: {self.measured}"

    @property
    def measured(self) -> str:
        """The perplexity, or that it was not measured."""
        return rounded(self.perplexity)

    @property
    def settings(self) -> dict[str, str]:
        """What the runs of a folder have in common, by name."""
        told = {
            **{"model": self.model, "device": self.device, "DRAM": show(self.dram_bytes, "size")},
            **{
                "layout": short(self.layout),
                "eviction": self.eviction + (f" over the {self.scope}" * bool(self.scope)),
            },
            **{"timing": self.timing, "start": self.start, "on the clock": self.on_clock, "tokens": f"{self.tokens:,}"},
        }
        return {name: value for name, value in told.items() if value}

    @property
    def setting(self) -> str:
        """The same in words."""
        return in_words(self.settings)


def in_words(settings: Mapping[str, str]) -> str:
    """Settings as the head of a figure says them: a name stands before what does not speak for itself."""
    bare = ("model", "device", "on the clock")
    words = [value if name in bare else f"{name} {value}" for name, value in settings.items() if name != "tokens"]
    tokens = settings.get("tokens")
    return " · ".join(words + ([] if tokens is None else [f"{tokens} token{'s' * (tokens != '1')}"]))


ONE_RUN = "each policy must stand there once, and all in the same setting"
_RUNS = TypeAdapter(Annotated[list[Run], Field(min_length=1)])


def read_tables(folder: Path) -> tuple[list[Run], list[pd.DataFrame]]:
    """Read the runs of an output folder and its tables: tokens, layers, spans.

    Raises InputError if they are missing or not those of one run.
    """
    runs = read_runs(folder)
    return runs, [_table(folder, name, runs) for name in TABLES if name != EXPERTS]


def runs_of(results: Sequence[Result]) -> list[Run]:
    """The runs that would be read back of results if they were written. Raises InputError if they are not one run's."""
    try:
        runs = _RUNS.validate_python([result.summary() for result in results])
    except ValidationError as error:
        complain(error, "results")
    if not _are_one(runs):
        raise InputError(f"results: {ONE_RUN}")
    return runs


def tables_of(results: Sequence[Result]) -> tuple[list[Run], list[pd.DataFrame], pd.DataFrame | None]:
    """What would be read back of results if they were written: runs, tables, and uses of experts.

    Raises InputError if they are not those of one run.
    """
    runs, tables = runs_of(results), _tables(results)
    return runs, [tables[name] for name in TABLES if name != EXPERTS], tables.get(EXPERTS)


def read_experts(folder: Path, runs: list[Run]) -> pd.DataFrame | None:
    """Read how often each expert was used; None where there are none. Raises InputError if it is not of these runs."""
    return _table(folder, EXPERTS, runs) if (folder / EXPERTS).is_file() else None


def read_runs(folder: Path) -> list[Run]:
    """Read the runs of an output folder. Raises InputError if its summary is missing or not that of one run."""
    path = folder / "summary.json"
    if not path.exists():
        raise InputError(f"{folder}: has no {', '.join(COMMANDS)}; give the output folder of a command that has ended")
    with made_again(folder, "run"):
        try:
            runs = _RUNS.validate_json(read_text(path))
        except ValidationError as error:
            complain(error, path)
        if not _are_one(runs):
            raise InputError(f"{path}: {ONE_RUN}")
    return runs


def _are_one(runs: list[Run]) -> bool:
    return len({run.policy for run in runs}) == len(runs) and len({run.setting for run in runs}) == 1


def _table(folder: Path, name: str, runs: list[Run]) -> pd.DataFrame:
    path = folder / name
    with made_again(folder, "run"):
        table = read_table(path, TABLES[name], _waited if name == "tokens.csv" else lambda _: None)
        _check_rows(path, table, runs)
    return table


def _check_rows(path: Path, table: pd.DataFrame, runs: list[Run]) -> None:
    """Raise InputError unless these are the rows of these runs: each once, and none left out."""
    policies = [run.policy for run in runs]
    refuse_rows(path, ~table["policy"].isin(policies), "its policy is not in summary.json")
    if missing := set(policies) - set(table["policy"]):
        raise InputError(f"{path}: has no rows of {quoted(min(missing))}, which is in summary.json")
    if path.name == "spans.csv":
        refuse_rows(path, table["token"] != table["token"].iloc[0], "is of another token than the first")
        refuse_rows(path, table["end_s"] < table["start_s"], "ends before it starts")
        return
    name = COUNTED[path.name]
    place = table.groupby("policy").cumcount()  # of a row among those of its policy
    if path.name == EXPERTS:
        refuse_rows(path, table.duplicated(["policy", "layer", "expert"]), "is there twice")
        place %= table["expert"].max() + 1  # layers may be left out, experts of a layer not
    refuse_rows(
        path, table[name] != place, f"its {name} does not follow the one before; a row is missing or there twice"
    )
    rows = table["policy"].value_counts()
    for run in runs:
        have, whole = rows[run.policy], run.tokens if name == "token" else rows[policies[0]]
        if have != whole and run.on_clock is None:  # drafts make several tokens a row
            raise InputError(f"{path}: has {have} of {whole} rows of {quoted(run.policy)}")


def _waited(name: str) -> Column | None:
    """What is read of `tokens.csv` besides: a stream, and what a token waited for of a further resource."""
    return AMOUNT if name.endswith("_s") else NATURAL if name == "stream" else None
