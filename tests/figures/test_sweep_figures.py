"""Who wins where and by how much, and what is compared with dense: from a table written by hand."""

import pandas as pd
import pytest

from dipsim.figures.maps import draw_winner
from dipsim.figures.sweep_table import price, read_sweep

ROW = {
    **{"trace": "t", "model": "m", "device": "phone", "mlp_fraction_in_dram": 0.5, "tokens": 64, "hit_rate": 0.75},
    **{"flash_utilisation": 0.4, "layout": "columns", "start": "warm", "eviction": "lru", "scope": "layer"},
    **{"timing": "serial", "prompt": 0, "read_through": True, "stream_static": False},
}
SPEEDS = {  # tokens/s by (DRAM, Flash)
    "dense": {(2e9, 1e9): 4, (2e9, 2e9): 8, (4e9, 1e9): 10, (4e9, 2e9): 30},
    "dip": {(2e9, 1e9): 6, (2e9, 2e9): 6, (4e9, 1e9): 15, (4e9, 2e9): 20},
    "dip-ca": {(2e9, 1e9): 5, (2e9, 2e9): 2, (4e9, 1e9): 12},
}


@pytest.fixture
def table(tmp_path):
    rows = [
        ROW | {"policy": policy, "dram_bytes": dram, "flash_bandwidth_bytes_per_s": flash, "tokens_per_s": speed,
               "perplexity": 10.5 if policy == "dense" else None, "key": f"{policy} {dram} {flash}"}
        for policy, speeds in SPEEDS.items() for (dram, flash), speed in speeds.items()
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "sweep.csv", index=False)
    return read_sweep(tmp_path / "sweep.csv")


def test_speed_up_is_over_dense_at_the_same_point(table):
    by = table.set_index(["policy", "dram_bytes", "flash_bandwidth_bytes_per_s"])["speedup"]
    assert by["dense"].tolist() == [1, 1, 1, 1]
    assert by["dip"].to_dict() == pytest.approx({(2e9, 1e9): 1.5, (2e9, 2e9): 0.75, (4e9, 1e9): 1.5, (4e9, 2e9): 2 / 3})
    assert by["dip-ca"].tolist() == pytest.approx([1.25, 0.25, 1.2])


def test_the_fastest_at_each_point_and_its_lead(table):
    """The next of 6 is 5, of 8 is 6, of 15 is 12, of 30 is 20."""
    axes = draw_winner(table).axes[0]
    said = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert said == {(0, 0): "B +20%", (1, 0): "A +33%", (0, 1): "B +25%", (1, 1): "A +50%"}
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["2", "4"]
    legend = [text.get_text().split("\n")[0] for text in axes.get_legend().get_texts()]
    assert legend == ["A  dense", "B  dip", "C  dip-ca (nowhere)"]


def test_the_price_of_rows(table):
    assert price(table) == "perplexity: 10.50 (4 of 11 measured)"
    assert price(table[table["policy"] == "dip"]) == "perplexity: not measured"
