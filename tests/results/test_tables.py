"""The terminal's tables: 80 columns hold them, in pieces if need be, and nothing is cut."""

import io

import pandas as pd
import pytest
from rich.console import Console

from dipsim.results.labels import short
from dipsim.results.tables import Pieces, budget_table, sweep_table


def printed(table, columns):
    console = Console(width=columns, file=io.StringIO())
    console.print(table)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= columns
    return lines


NUMBERS = {
    **{name: ["1234567.8", "2.0"] for name in ("tokens/s", "read amplification", "mean read", "used", "mJ/token")},
    "perplexity": ["not measured", "17.24 ± 0.07"],
}
LABELS = {"dram": ["64 MB", "65 MB"], "policy": ["dip-ca(keep=0.75, gamma=0.5, fixed_top_n=16)", "x" * 30]}


@pytest.mark.parametrize(("columns", "pieces"), [(80, 2), (60, 3), (200, 1)])
def test_a_table_that_is_too_wide_comes_in_pieces(columns, pieces):
    lines = printed(Pieces(LABELS, NUMBERS, "perplexity"), columns)
    heads = [line.split() for line in lines if line.split()[:2] == ["dram", "policy"]]
    assert len(heads) == pieces
    assert heads[0][-1] == "perplexity"
    assert sum(head.count("tokens/s") for head in heads) == 1
    text = "\n".join(lines)
    assert text.count("1234567.8") == 5
    assert text.count("64 MB") == pieces
    assert "…" not in text


def test_what_just_fits_is_one_piece():
    """Edges of 2, a label of 6, and numbers of 3 and 10 with a space before each."""
    table = Pieces({"policy": ["dense"]}, {"a": ["1.0"], "perplexity": ["1"]}, "perplexity")
    assert [sum("policy" in line for line in printed(table, columns)) for columns in (24, 23)] == [1, 2]


def test_each_budget_has_its_ratio_and_below_it_what_gives_it():
    best = pd.DataFrame({
        "mlp_fraction": [0.3], "policy": ["dip-ca"],
        "+0.1": ["1.24x"], "+0.1 setting": ["dip-ca(gamma=0.5, keep=0.9, calibration='/a/b/c.safetensors')"],
        "+0.5": [""], "+0.5 setting": [""],
    })  # fmt: skip
    lines = printed(budget_table(best), 80)
    assert next(line.split() for line in lines if line) == ["MLP", "in", "DRAM", "policy", "+0.1", "+0.5"]
    words = " ".join(lines).split()
    assert words[-6:] == ["30%", "dip-ca", "1.24x", "gamma=0.5", "keep=0.9", "calibration='c.safetensors'"]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_policy_of_a_sweep_is_a_row_with_its_prices(missing):
    points = pd.DataFrame({
        "policy": ["precision(calibration='/far/q4.safetensors')"] * 2 + ["dip"] * 2,
        "tokens_per_s": [1.0, 2.0, 30.0, 40.0], "hit_rate": [0.5, 0.75, 0.1, 0.2],
        "perplexity": [missing, missing, 17.25, missing], "energy_j_per_token": [missing] * 4,
    })  # fmt: skip
    lines = printed(sweep_table(points), 80)
    assert "1.00 to 2.00 50.0% to 75.0% not measured" in " ".join(" ".join(lines).split())
    assert "30.00 to 40.00 10.0% to 20.0% several" in " ".join(" ".join(lines).split())
    assert "far" not in " ".join(lines)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("precision(calibration='/a/b/q4.safetensors', keep=0.5)", "precision(calibration='q4.safetensors', keep=0.5)"),
        ("mine(of=../x.py)", "mine(of=x.py)"),
        ("./layouts/own.safetensors", "own.safetensors"),
        ("dip-ca(keep=0.75, gamma=0.5)", "dip-ca(keep=0.75, gamma=0.5)"),
        ("folder/", "folder/"),
    ],
)
def test_a_path_is_said_by_its_file(label, said):
    assert short(label) == said


LONG = "dip-ca(keep=0.75, gamma=0.5)"


def point(policy, speed, hits, joules):
    return {
        **{"policy": policy, "tokens_per_s": speed, "hit_rate": hits},
        **{"energy_j_per_token": joules, "perplexity": None},
    }


def test_a_sweep_tells_the_energy_of_a_token():
    points = pd.DataFrame([point(LONG, 12345.67, 0.5, 0.1234), point(LONG, 123.4, 1.0, 12.34), point("dense", 9.5, 0.1, None)])  # fmt: skip # noqa: E501
    shown = printed(sweep_table(points), 80)
    assert max(map(len, shown)) <= 80
    rows = [line.split() for line in shown[3:7]]
    assert shown[1].split() == ["policy", "points", "tokens/s", "hit", "rate", "mJ/token", "perplexity"]
    assert rows[0] == ["dip-ca(keep=0.75,", "2", "123.40", "to", "50.0%", "to", "123", "to", "not", "measured"]
    assert rows[1] == ["gamma=0.5)", "12345.67", "100.0%", "12,340"]
    assert rows[2] == ["dense", "1", "9.50", "to", "10.0%", "to", "unknown", "not", "measured"]


def test_a_sweep_without_energy_does_not_speak_of_it():
    shown = printed(sweep_table(pd.DataFrame([point("dense", 9.5, 0.1, None), point("dense", 10, 0.2, None)])), 80)
    assert "mJ" not in shown[1]
    assert shown[3].split() == ["dense", "2", "9.50", "to", "10.00", "10.0%", "to", "20.0%", "not", "measured"]
