"""Perplexity against speed, and the figure of a benchmark: what they say, and that they look like all others."""

import importlib.util

import pandas as pd
import pytest

from dipsim.figures.pareto import draw_pareto
from dipsim.figures.style import COLOURS


def rows(**fields):
    same = {"mlp_fraction": 0.5, "eviction": "lfu", "device": "phone", "timing": "serial", "tokens": 3584}
    same |= {"text": "t.txt", "model": "tiny"}
    names = ("policy", "tokens_per_s", "perplexity", "standard_error")
    points = [("dense", 50.0, 16.8, 0.0), ("dip", 60.0, 17.0, 0.1), ("dip", 80.0, 19.0, 0.5)]
    return pd.DataFrame(points, columns=names).assign(**same | fields)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws such rows; returns the figure, which is not saved."""

    def draw(table):
        kept = []
        monkeypatch.setattr("dipsim.figures.pareto.save_figure", lambda figure, _: kept.append(figure) or [])
        draw_pareto(table, tmp_path)
        return kept[0]

    return draw


def test_every_point_has_its_error_and_the_axis_begins_near_the_data(drawn):
    (axes,) = drawn(rows()).axes
    ends = [segment[:, 1].tolist() for _, _, (bars,) in axes.containers for segment in bars.get_segments()]
    assert ends == [pytest.approx(each) for each in ([16.8, 16.8], [16.9, 17.1], [18.5, 19.5])]
    assert axes.get_ylim() == pytest.approx((0.985 * 16.8, 1.05 * 19))


def test_the_head_says_only_what_all_rows_share(drawn):
    assert drawn(rows()).texts[1].get_text() == "tiny · phone · lfu · serial · 3,584 tokens of t.txt"
    swept = rows(eviction=["lfu", "lru", "lfu"], device=["a", "b", "a"])
    assert drawn(swept).texts[1].get_text() == "tiny · serial · 3,584 tokens of t.txt"


def test_the_figure_of_scaling_is_in_the_same_style(checkout):
    spec = importlib.util.spec_from_file_location("scaling", checkout / "benchmarks/scaling.py")
    scaling = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scaling)
    found = {
        (varied, model): [(value * (index + 1), 100.0 * value) for value in values]
        for varied, values in scaling.SERIES.items() for index, model in enumerate(scaling.MODELS)
    }  # fmt: skip
    figure = scaling.draw(found)
    assert figure.texts[0].get_text() == "Time and memory of planning"
    time, *_ = figure.axes
    assert [line.get_color() for line in time.lines] == list(COLOURS[:2])
    assert [line.get_ydata().tolist() for line in time.lines] == [[32, 64, 128, 256, 512], [64, 128, 256, 512, 1024]]
    assert time.get_ylim()[0] == time.get_xlim()[0] == 0
    assert time.get_ylim()[1] > 1024
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(scaling.MODELS)
