"""The terminal's tables: energy where it is known, and no number cut off in 80 columns."""

import io

import pandas as pd
import pytest
from rich.console import Console

import dipsim
from dipsim.results.tables import run_table, sweep_table

ENERGY = {"flash": "50 pJ/bit", "dram": "5 pJ/bit", "compute": "1 pJ/FLOP"}
LONG = "dip-ca(keep=0.75, gamma=0.5)"


def lines(table, width):
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue().splitlines()


def point(policy, speed, hits, joules):
    return {
        **{"policy": policy, "tokens_per_s": speed, "hit_rate": hits},
        **{"energy_j_per_token": joules, "perplexity": "not measured"},
    }


def test_a_sweep_tells_the_energy_of_a_token():
    points = pd.DataFrame([point(LONG, 12345.67, 0.5, 0.1234), point(LONG, 123.4, 1.0, 12.34), point("dense", 9.5, 0.1, None)])  # fmt: skip # noqa: E501
    printed = lines(sweep_table(points), 80)
    assert max(map(len, printed)) <= 80
    rows = [line.split() for line in printed[3:7]]
    assert printed[1].split() == ["policy", "points", "tokens/s", "hit", "rate", "mJ/token", "perplexity"]
    assert rows[0] == ["dip-ca(keep=0.75,", "2", "123.40", "to", "50.0%", "to", "123", "to", "not", "measured"]
    assert rows[1] == ["gamma=0.5)", "12345.67", "100.0%", "12,340"]
    assert rows[2] == ["dense", "1", "9.50", "to", "10.0%", "to", "unknown", "not", "measured"]


def test_a_sweep_without_energy_does_not_speak_of_it():
    printed = lines(sweep_table(pd.DataFrame([point("dense", 9.5, 0.1, None), point("dense", 10, 0.2, None)])), 80)
    assert "mJ" not in printed[1]
    assert printed[3].split() == ["dense", "2", "9.50", "to", "10.00", "10.0%", "to", "20.0%", "not", "measured"]


@pytest.mark.parametrize("width", [80, 130])
def test_a_run_tells_energy_and_price_at_any_width(tiny_trace, width):
    device = dipsim.Device.load("oneplus-12").replace(energy=ENERGY)
    result = dipsim.simulate(tiny_trace(), {"dip-ca": {"keep": 0.75, "gamma": 0.5}}, device, dram="2 kB")
    summary = result.summary()
    assert summary["read_amplification"] > 1.01  # which takes two columns more, if there is room
    text = "\n".join(lines(run_table([result], width), width))
    shown = [f"{result.tokens_per_s:.2f}", f"{result.hit_rate:.1%}", "not measured", "mJ/token"]
    shown += [f"{1e3 * summary['energy_j_per_token']:.3g}"[:5], f"{summary['mlp_fraction_read']:.1%}"]
    assert [each for each in shown if each not in text] == []
    assert ("…" in text, "ms/token" in text, "amplification" in text) == (False, width == 130, width == 130)
