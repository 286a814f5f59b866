"""The table of a sweep: what is damaged is one line, and rows that are not there are left out of the figures."""

from itertools import product

import pandas as pd
import pytest

from dipsim.basics.errors import InputError
from dipsim.figures.sweep import draw_sweep
from dipsim.figures.sweep_table import read_sweep

GRID = list(product((1e9, 2e9, 3e9), (1e9, 2e9), ("dense", "dip")))  # DRAM, Flash, policy


def sound() -> pd.DataFrame:
    rows = [
        {
            **{"trace": "t", "model": "m", "device": "paper", "layout": "columns", "start": "warm", "eviction": "lfu"},
            **{"timing": "serial", "prompt": "0", "read_through": "True", "stream_static": "False", "policy": policy},
            **{"perplexity": "", "key": f"k{index}", "dram_bytes": dram, "mlp_fraction_in_dram": 0.5},
            **{"flash_bandwidth_bytes_per_s": flash, "tokens": 8, "hit_rate": 0.5, "flash_utilisation": 0.9},
            "tokens_per_s": dram / 1e9 + flash / 1e9 + (policy == "dip"),
        }
        for index, (dram, flash, policy) in enumerate(GRID)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def written(tmp_path):
    """Writes a table; returns its path."""

    def write(table):
        table.to_csv(tmp_path / "sweep.csv", index=False)
        return tmp_path / "sweep.csv"

    return write


def test_a_sound_table(written):
    table = read_sweep(written(sound()))
    assert table["speedup"].tolist() == [1, 1.5, 1, 4 / 3, 1, 4 / 3, 1, 1.25, 1, 1.25, 1, 1.2]


def test_a_perplexity_that_was_not_measured_was_a_word_before(written):
    words, numbers = (sound().assign(perplexity=[price, *["17.5"] * 11]) for price in ("not measured", ""))
    assert read_sweep(written(words))["perplexity"].tolist()[1:] == [17.5] * 11
    pd.testing.assert_frame_equal(read_sweep(written(words)), read_sweep(written(numbers)))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda table: table.rename(columns={"policy": "policies"}), "column policy: is missing"),
        (lambda table: table.drop(columns="hit_rate"), "column hit_rate: is missing"),
        (lambda table: pd.concat([table, table.tail(1)]), "row 13: is there twice"),
        (lambda table: table.assign(perplexity="0"), "column perplexity: row 1: '0' is not a number from 1e-30"),
        (lambda table: table.assign(perplexity="inf"), "column perplexity: row 1: 'inf' is not a number"),
        (lambda table: table.assign(perplexity="measured"), "column perplexity: row 1: 'measured' is not a number"),
        (lambda table: table.assign(read_through="yes"), "row 1: its read_through is neither True nor False"),
        (lambda table: table.assign(tokens_per_s=0), "column tokens_per_s: row 1: '0' is not a number from 1e-30"),
        (lambda table: table.assign(dram_bytes="1e300"), "column dram_bytes: row 1: '1e300' is not a number"),
        (lambda table: table.head(0), "has no rows"),
    ],
)
def test_a_damaged_table_is_one_line(written, change, complaint):
    path = written(change(sound()))
    with pytest.raises(InputError) as error:
        draw_sweep(path.parent)
    assert str(error.value).startswith(f"{path}: ")
    assert complaint in str(error.value)
    assert str(error.value).endswith("; run `python -m dipsim sweep` again")
    assert not list(path.parent.glob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("left", [[1], [0, 1], range(1, 12, 2), range(1, 10)], ids=["one", "cell", "dense", "most"])
def test_rows_that_are_not_there_are_not_drawn(written, left):
    path = written(sound().drop(index=list(left)))
    assert {file.stem for file in draw_sweep(path.parent)} >= {"speed", "dram", "flash"}


def test_two_dense_points_that_figures_cannot_tell_apart_are_no_measure(written):
    """A sweep of what no figure names, such as the trace that a layout is learned from."""
    twice = sound().assign(key=[f"l{index}" for index in range(len(GRID))], tokens_per_s=9.0)
    table = read_sweep(written(pd.concat([sound(), twice])))
    assert table["speedup"].isna().all()
