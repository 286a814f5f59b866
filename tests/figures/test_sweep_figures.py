"""Who wins where and by how much, and what is compared with dense: from a table written by hand."""

import pandas as pd
import pytest

from dipsim.figures.maps import draw_maps, draw_winner
from dipsim.figures.sweep import draw_sweep
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
def sweep(tmp_path):
    """Writes a sweep's table of such rows, and reads it again."""

    def read(*rows):
        full = [ROW | row | {"key": str(index)} for index, row in enumerate(rows)]
        pd.DataFrame(full).to_csv(tmp_path / "sweep.csv", index=False)
        return read_sweep(tmp_path / "sweep.csv")

    return read


def point(dram=2e9, flash=1e9, policy="dense", speed=4.0, perplexity="not measured", **fields):
    return {"dram_bytes": dram, "flash_bandwidth_bytes_per_s": flash, "policy": policy, "tokens_per_s": speed,
            "perplexity": perplexity, **fields}  # fmt: skip


@pytest.fixture
def table(sweep):
    return sweep(*(
        point(*where, policy, speed, "10.5" if policy == "dense" else "not measured")
        for policy, speeds in SPEEDS.items() for where, speed in speeds.items()
    ))  # fmt: skip


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws the sweep that was written; returns the figures by name, none of them saved."""

    def draw():
        found = {}
        monkeypatch.setattr(
            "dipsim.figures.sweep.save_figure", lambda figure, path: found.update({path.name: figure}) or []
        )
        draw_sweep(tmp_path)
        return found

    return draw


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
    assert legend == ["A  dense", "B  dip", "C  dip-ca (nowhere)", "perplexity of the fastest: not measured"]


def hatched(axes):
    """The cells that are hatched, by column and row."""
    return {(patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in axes.patches if patch.get_hatch()}


def test_nobody_wins_at_an_unknown_price_without_a_hatch(table):
    """At (0, 0) and (0, 1) dip wins, which was not measured."""
    assert hatched(draw_winner(table).axes[0]) == {(0, 0), (0, 1)}
    measured = draw_winner(table.assign(perplexity=10.5)).axes[0]
    assert hatched(measured) == set()
    assert len(measured.get_legend().get_texts()) == 3


def test_the_price_of_rows(table):
    assert price(table) == "perplexity: 10.50 (4 of 11 measured)"
    assert price(table[table["policy"] == "dip"]) == "perplexity: not measured"


def said(figure):
    """Title and setting."""
    return [text.get_text() for text in figure.texts]


def labels(ticks):
    return [tick.get_text() for tick in ticks]


@pytest.mark.parametrize(("rows", "columns", "written"), [(4, 8, 32), (2, 9, 0), (5, 5, 0)])
def test_small_maps_have_their_figures_in_the_cells(sweep, rows, columns, written):
    """What is larger has lines, through which nothing is written that was not simulated."""
    places = [((row + 1) * 1e9, (column + 1) * 1e9) for row in range(rows) for column in range(columns)]
    table = sweep(*(point(dram, flash, speed=dram / 1e9 * flash / 1e9) for dram, flash in places))
    axes = draw_maps(table, "tokens_per_s", "Speed").axes[0]
    inside = [text.get_text() for text in axes.texts if text.get_fontsize() == 7.5]
    assert len(inside) == written
    assert inside[: 8 * bool(written)] == [f"{value:.2f}" for value in range(1, 9)][: 8 * bool(written)]


def test_axes_are_in_units_of_the_data(sweep, drawn):
    sizes, speeds = (5e7, 6.25e7), (4e8, 9e8)
    table = sweep(*(point(dram, flash, speed=dram / flash) for dram in sizes for flash in speeds))
    axes = draw_maps(table, "tokens_per_s", "Speed").axes[0]
    assert (axes.get_xlabel(), labels(axes.get_xticklabels())) == ("Flash read bandwidth (MB/s)", ["400", "900"])
    assert (axes.get_ylabel(), labels(axes.get_yticklabels())) == ("DRAM (MB)", ["50", "62.5"])
    line = drawn()["dram"].axes[0]
    assert line.get_xlabel() == "DRAM (MB)"
    assert line.lines[0].get_xdata().tolist() == [50, 62.5]
    assert drawn()["flash"].axes[0].lines[0].get_xdata().tolist() == [400, 900]


@pytest.mark.parametrize(
    ("speeds", "ticks"),
    [
        ((1.2, 1.25, 1.3, 1.4), ["1.20", "1.30", "1.40"]),
        ((1.4, 1.5, 1.6, 1.9), ["1.40", "1.63", "1.90"]),
        ((4.0, 4.0, 4.0, 4.0), ["3.81", "4.00", "4.20"]),
        ((1.0, 2.0, 3.0, 5.0), ["1", "1.5", "2", "3", "5"]),
    ],
)
def test_a_colour_bar_has_three_ticks_at_least(sweep, speeds, ticks):
    places = ((2e9, 1e9), (2e9, 2e9), (4e9, 1e9), (4e9, 2e9))
    table = sweep(*(point(*where, speed=speed) for where, speed in zip(places, speeds, strict=True)))
    bar = draw_maps(table, "tokens_per_s", "Speed").axes[-1]
    assert labels(bar.get_yticklabels()) == ticks
    low, high = bar.get_ylim()
    assert all(low <= tick <= high for tick in bar.get_yticks())


def test_without_dense_there_is_no_panel_of_its_speed_ups(sweep, drawn):
    sweep(*(point(flash=flash, policy="dip", speed=flash / 1e9) for flash in (1e9, 2e9)))
    (panel,) = drawn()["flash"].axes
    assert panel.get_ylabel() == "tokens/s"
    sweep(*(point(flash=flash, policy=policy) for flash in (1e9, 2e9) for policy in ("dense", "dip")))
    assert [axes.get_ylabel() for axes in drawn()["flash"].axes] == ["tokens/s", "speed-up over dense"]


def test_devices_are_categories(sweep, drawn):
    """Each brings its own Flash and its own DRAM, which are then no axis; the head names neither."""
    phones = {"slow": (2e9, 1e9), "fast": (4e9, 3e9)}
    prices = (("dense", 10.0, ""), ("dip", 11.0, 0.25))
    sweep(*(
        point(*of, policy, device=name, perplexity=price, perplexity_standard_error=error)
        for name, of in phones.items() for policy, price, error in prices
    ))  # fmt: skip
    figures = drawn()
    assert list(figures) == ["policies"]
    speed, _, prices = figures["policies"].axes
    assert labels(speed.get_yticklabels()) == ["slow · dense", "slow · dip", "fast · dense", "fast · dip"]
    fixed = "m (t) · layout columns · start warm · eviction lru · timing serial · 64 tokens"
    assert said(figures["policies"])[1] == fixed
    assert [text.get_text() for text in prices.texts] == ["10.00", "11.00 ± 0.25"] * 2
    assert prices.get_xlim() == pytest.approx((10 - 0.125, 11.25 + 1.375))  # the data span 1.25


def test_a_sweep_of_devices_and_dram_has_a_line_for_each_device(sweep, drawn):
    rows = [point(dram, flash, speed=dram / 1e9 + flash / 1e9, device=name)
            for dram in (2e9, 3e9) for name, flash in (("slow", 1e9), ("fast", 3e9))]  # fmt: skip
    sweep(*rows)
    figures = drawn()
    assert list(figures) == ["dram"]
    assert said(figures["dram"])[0] == "Speed against DRAM"
    assert [line.get_ydata().tolist() for line in figures["dram"].axes[0].lines] == [[3, 4], [5, 6]]
    assert labels(figures["dram"].legends[0].get_texts()) == ["slow", "fast"]


def test_what_is_held_is_said_and_what_is_swept_is_not(sweep, drawn):
    sweep(*(point(dram, flash) for dram in (2e9, 3e9, 4e9) for flash in (1e9, 2e9)))
    figures = drawn()
    assert said(figures["flash"])[0] == "Speed against Flash, DRAM 3 GB"
    assert said(figures["dram"])[0] == "Speed against DRAM, Flash 1 GB/s"
    sweep(*(point(policy=f"dip(keep={keep})") for keep in (0.5, 0.7)))
    assert said(drawn()["policies"])[1].endswith("64 tokens · DRAM 2 GB")


def test_a_model_is_named_and_paths_are_file_names(sweep):
    table = sweep(point(trace="./far/m.safetensors", policy="p(of='/a/x.bin')"), point(policy="p(of='/b/y.bin')"))
    assert table["trace"].tolist() == ["m.safetensors", "m (t)"]
    assert table["policy"].tolist() == ["p(of='x.bin')", "p(of='y.bin')"]
    same = sweep(point(policy="p(of='/a/x.bin')"), point(policy="p(of='/b/x.bin')"))
    assert same["policy"].tolist() == ["p(of='/a/x.bin')", "p(of='/b/x.bin')"]


def test_a_price_that_is_not_there_is_empty_or_says_so(sweep):
    table = sweep(point(perplexity="not measured"), point(2e9, 2e9, perplexity=""), point(3e9, perplexity="16.8"))
    assert table["perplexity"].isna().tolist() == [True, True, False]
    assert price(table) == "perplexity: 16.80 (1 of 3 measured)"
