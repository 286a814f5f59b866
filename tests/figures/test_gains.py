"""Gains of prefetch and drafts, from tables written by hand: who is compared with whom, and what the maps say."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from dipsim.figures.gains import gains, map_axes
from dipsim.figures.sweep import draw_sweep
from dipsim.figures.sweep_table import read_sweep

ROW = {
    **{"trace": "qwen", "model": "qwen", "device": "phone", "dram_bytes": 5e9, "flash_bandwidth_bytes_per_s": 2e9},
    **{"mlp_fraction_in_dram": 0.5, "tokens": 64, "hit_rate": 0.75, "flash_utilisation": 0.4, "policy": "experts"},
    **{"layout": "columns", "start": "warm", "eviction": "lru", "scope": "model", "timing": "serial", "prompt": 0},
    **{"read_through": True, "stream_static": False, "perplexity": "not measured"},
}


def sweep(folder: Path, *rows: dict[str, Any]) -> pd.DataFrame:
    """A sweep's table of such rows, written and read again."""
    folder.mkdir(exist_ok=True)
    full = [ROW | row | {"key": str(index)} for index, row in enumerate(rows)]
    pd.DataFrame(full).to_csv(folder / "sweep.csv", index=False)
    return read_sweep(folder / "sweep.csv")


def point(when: str, speed: float, recall: float = 0.5, lanes: int = 4, **fields: Any) -> dict[str, Any]:
    return {"prefetch.when": when, "oracle.recall": recall, "flash.lanes": lanes, "tokens_per_s": speed, **fields}


def texts(path: Path) -> list[str]:
    """What an SVG says, line by line."""
    return [element.text or "" for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


GRID = [  # without prefetch the recall means nothing, so a sweep has those points once
    point("never", 4.0, lanes=2, flash_utilisation=0.7),
    point("never", 5.0, lanes=4, flash_utilisation=0.4),
    *(point("idle", speed, recall, 2) for recall, speed in ((0.25, 3.0), (0.5, 4.0), (1.0, 5.0))),
    *(point("idle", speed, recall, 4) for recall, speed in ((0.25, 5.0), (0.5, 5.5), (1.0, 7.5))),
]


def test_a_point_is_compared_with_the_one_that_is_the_same_without_guesses(tmp_path: Path) -> None:
    found = gains(sweep(tmp_path, *GRID), "prefetch")
    assert found["gain"].tolist() == pytest.approx([0.75, 1.0, 1.25, 1.0, 1.1, 1.5])
    assert found["baseline"].tolist() == [4.0] * 3 + [5.0] * 3
    assert found["idle"].tolist() == pytest.approx([0.3] * 3 + [0.6] * 3)
    assert map_axes(found, "prefetch") == ["oracle.recall", "flash.lanes"]


def test_a_point_without_its_twin_is_left_out(tmp_path: Path) -> None:
    others = (point("never", 2.0, timing="pipelined"), point("idle", 3.0, dram_bytes=6e9), point("idle", 6.0, lanes=8))
    table = sweep(tmp_path, point("never", 5.0), point("idle", 6.0), *others)
    assert gains(table, "prefetch")["gain"].tolist() == [1.2]


def test_nothing_is_compared_where_nothing_is_swept(tmp_path: Path) -> None:
    table = sweep(tmp_path, {"tokens_per_s": 4.0, "flash.lanes": 4})
    assert gains(table, "prefetch").empty
    assert gains(table, "drafts").empty
    always = sweep(tmp_path, point("idle", 4.0), point("idle", 5.0, recall=1.0), point("eager", 5.0, lanes=2))
    assert map_axes(gains(always, "prefetch"), "prefetch") == []


def test_drafts_are_compared_with_none_whatever_would_be_accepted(tmp_path: Path) -> None:
    rows = [{"speculate.draft": n, "speculate.acceptance": a, "prefetch.when": when, "tokens_per_s": speed}
            for n, a, when, speed in (
                (0, 0.3, "never", 4.0), (0, 0.3, "idle", 5.0), (2, 0.3, "never", 3.0),
                (2, 0.9, "never", 6.0), (2, 0.3, "idle", 5.5), (4, 0.3, "never", 2.0),
            )]  # fmt: skip
    table = sweep(tmp_path, *rows)
    assert gains(table, "drafts")["gain"].tolist() == pytest.approx([0.75, 1.5, 1.1, 0.5])
    assert map_axes(gains(table, "drafts"), "drafts") == ["speculate.draft", "speculate.acceptance"]
    assert gains(table, "prefetch")["gain"].tolist() == pytest.approx([1.25, 11 / 6])


@pytest.mark.parametrize(
    ("swept", "axes"),
    [
        ({"oracle.recall": (0.5, 1.0), "prefetch.lanes": (1, 2)}, ["oracle.recall", "prefetch.lanes"]),
        ({"dram_bytes": (5e9, 6e9), "prefetch.buffer": ("60 MB", "1 GB")}, ["prefetch.buffer", "dram_bytes"]),
        ({"oracle.recall": (0.5, 1.0), "prefetch.buffer": ("60 MB", "1 GB"), "compute.weights": ("9 GB/s", "10 GB/s")},
         ["oracle.recall", "compute.weights"]),
        ({"flash.read_bandwidth": ("1 GB/s", "2 GB/s"), "dram_bytes": (5e9, 6e9)},
         ["dram_bytes", "flash.read_bandwidth"]),
        ({"oracle.recall": (0.5, 1.0), "timing": ("serial", "pipelined")}, ["oracle.recall"]),
        ({"oracle.recall": (0.5, 1.0), "prefetch.drop_late": (True, False)}, ["oracle.recall"]),
    ],
)  # fmt: skip
def test_one_axis_is_of_the_guesses_and_one_of_the_machine(
    tmp_path: Path, swept: dict[str, tuple[Any, Any]], axes: list[str]
) -> None:
    low, high = ({name: values[index] for name, values in swept.items()} for index in (0, 1))
    rows = [{"prefetch.when": when, "tokens_per_s": 4.0, **each} for when in ("never", "idle") for each in (low, high)]
    assert map_axes(gains(sweep(tmp_path, *rows), "prefetch"), "prefetch") == axes


def test_the_map_says_gains_idle_shares_and_where_they_are(tmp_path: Path) -> None:
    sweep(tmp_path, *GRID)
    drawn = [path.stem for path in draw_sweep(tmp_path)]
    assert drawn == ["prefetch", "prefetch"]
    said = texts(tmp_path / "prefetch.svg")
    assert {"0.750", "1.00", "1.25", "1.10", "1.50", "break-even"} <= set(said)
    assert said.index("30% idle") < said.index("60% idle")  # 2 lanes, then 4
    assert "without: 4.00 to 5.00 tokens/s" in said
    assert "perplexity: not measured" in said
    assert any(text.startswith("qwen · phone · DRAM 5 GB · experts · start warm") for text in said)


def test_each_value_of_all_else_is_a_panel_and_numbers_rise_whatever_their_unit(tmp_path: Path) -> None:
    rows = [{"prefetch.when": "never", "prefetch.buffer": "60 MB", "oracle.recall": 0.5, "tokens_per_s": 4.0}]
    rows += [{"prefetch.when": when, "prefetch.buffer": buffer, "oracle.recall": recall, "tokens_per_s": 4.0 + recall}
             for when in ("idle", "eager") for buffer in ("1 GB", "60 MB") for recall in (1.0, 0.5)]  # fmt: skip
    sweep(tmp_path, *rows)
    draw_sweep(tmp_path)
    said = texts(tmp_path / "prefetch.svg")
    assert {"prefetch.when idle", "prefetch.when eager"} <= set(said)
    assert said.count("without: 4.00 tokens/s, Flash 60% idle") == 2
    assert said.index("60 MB") < said.index("1 GB")
    assert not any("and how long" in text for text in said)


def test_a_baseline_is_named_without_what_means_nothing_for_it(tmp_path: Path) -> None:
    table = sweep(tmp_path, *GRID)
    assert table["case"].iloc[0] == "prefetch.when never · flash.lanes 2"
    assert table["case"].iloc[2] == "prefetch.when idle · oracle.recall 0.25 · flash.lanes 2"
