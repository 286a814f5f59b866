"""Runs side by side, from summaries written by hand: what differs, each row, and every bar."""

from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from dipsim.basics.errors import InputError
from dipsim.figures.compare import side_by_side
from dipsim.results.compare import Compared, check_comparable, differences, rows, said
from dipsim.results.folder import Run, in_words

CALIBRATED = "precision(calibration='/far/away/q4.safetensors')"


def run(policy: str, speed: float, perplexity: float | None = None, **fields: Any) -> Run:
    """A run whose tokens wait for Flash for 3/4 of the time, and for DRAM for the rest."""
    data = {
        **{"policy": policy, "model": "tiny", "device": "phone", "layout": "columns", "eviction": "lfu"},
        **{"timing": "serial", "start": "warm", "dram_bytes": 64e6, "tokens": 1500, "tokens_per_s": speed},
        **{"latency_s": {"mean": 1 / speed}, "hit_rate": 0.5, "mlp_fraction_read": 1.0, "perplexity": perplexity},
        "parts_s": {"flash": 0.75 / speed, "dram": 0.25 / speed, "compute": 0.0},
    }
    return Run.model_validate(data | fields)


def compared(name: str, *runs: Run, **options: Any) -> Compared:
    return Compared(name, runs, {"trace": "tiny", "device": "phone", "tokens": 3000, "policies": []} | options)


TWO = (
    compared("slow", run("dense", 20.0, 16.8), run(CALIBRATED, 40.0, 17.5, perplexity_standard_error=0.25)),
    compared(
        "fast", run("dense", 50.0, 16.8, device="other", energy_j_per_token=0.5), run("dip", 80.0, device="other")
    ),
)


def test_what_differs_and_what_is_the_same() -> None:
    other = compared("b", run("dense", 2.0, dram_bytes=5e8, eviction="lru"), cache={"size": "1 GB"}, prompt=100)
    same, differ = differences(rows([compared("a", run("dense", 1.0)), other]))
    assert in_words(same) == "tiny · phone · layout columns · timing serial · start warm · 1,500 tokens"
    assert said(differ) == (
        "DRAM 64 MB / 500 MB · eviction lfu / lru · cache.size default / 1 GB · prompt default / 100"
    )


def test_what_is_the_same_but_no_default_is_told_too() -> None:
    same, differ = differences(rows([compared(name, run("dense", 1.0, tokens=1), prompt=100) for name in "ab"]))
    assert in_words(same).endswith("start warm · prompt 100 · 1 token")
    assert said(differ) == "nothing but the folders"


def test_traces_are_told_where_they_differ() -> None:
    other = compared("b", run("dense", 1.0), trace="./its/own.yaml")
    _, differ = differences(rows([compared("a", run("dense", 1.0)), other]))
    assert differ == {"trace": ["tiny", "own.yaml"]}


def test_rows_are_policy_by_policy_and_over_the_first() -> None:
    table = rows(TWO)
    assert table["policy"].tolist() == ["dense", "dense", CALIBRATED, "dip"]
    assert table["compared"].tolist() == ["slow", "fast", "slow", "fast"]
    assert table["ratio"].tolist()[:3] == [1.0, 2.5, 1.0]
    assert np.isnan(table["ratio"].iloc[3])  # the first has no dip
    assert table["perplexity"].tolist()[:3] == [16.8, 16.8, 17.5]
    assert table["perplexity_source"].tolist() == ["measured"] * 3 + ["not measured"]
    assert table["parts_s.flash"].tolist() == [0.0375, 0.015, 0.01875, 0.009375]
    assert table["energy_j_per_token"].dropna().tolist() == [0.5]


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        (compared("b", run("dense", 1.0, model="huge")), "a is of tiny, b of huge: speeds of different models"),
        (compared("b", run("dense", 1.0, model=""), trace="huge"), "a is of tiny, b of huge"),  # of version 0.1
        (compared("b", run("dip", 1.0)), "no policy is in all that is compared: a has dense; b has dip"),
    ],
)
def test_what_does_not_compare_is_said(second: Compared, complaint: str) -> None:
    with pytest.raises(InputError, match="^" + complaint):
        check_comparable([compared("a", run("dense", 1.0)), second])


def test_every_bar_says_its_speed_its_price_and_where_the_time_went() -> None:
    check_comparable(TWO)
    figure = side_by_side(rows(TWO))
    assert figure.texts[1].get_text() == (
        "tiny · DRAM 64 MB · layout columns · eviction lfu · timing serial · start warm · 1,500 tokens\n"
        "different: device phone / other"
    )
    speed, time = figure.axes
    bars = [patch.get_width() for patch in speed.patches if isinstance(patch, Rectangle)]
    assert bars == [20.0, 50.0, 40.0, 80.0]
    texts = [text.get_text() for text in speed.texts]
    assert {"dense", "precision(calibration='q4.safetensors')", "dip"} <= set(texts)
    assert "50.0 (2.50x), perplexity: 16.80" in texts
    assert "40.0 (1.00x), perplexity: 17.50" in texts
    assert "80.0, perplexity: not measured" in texts
    assert [label.get_text() for label in speed.get_yticklabels()] == ["slow", "fast", "slow", "fast"]
    stacked = [(patch.get_x(), patch.get_width()) for patch in time.patches if isinstance(patch, Rectangle)]
    assert np.array(stacked[:4]) == pytest.approx(np.array([(0, 37.5), (0, 15), (0, 18.75), (0, 9.375)]))
    assert np.array(stacked[4:]) == pytest.approx(np.array([(37.5, 12.5), (15, 5), (18.75, 6.25), (9.375, 3.125)]))
    assert time.get_title() == "what a token waited for (ms)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Flash", "DRAM"]  # no compute, no waiting
    assert [text.get_text() for text in time.texts] == ["50.0", "20.0", "25.0", "12.5"]


def test_tokens_that_waited_for_nothing_that_is_told_have_no_bars() -> None:
    figure = side_by_side(rows([compared("a", run("dense", 20.0, parts_s={})), compared("b", run("dense", 30.0))]))
    assert [text.get_text() for text in figure.axes[1].texts] == ["0", "33.3"]
    bare = side_by_side(rows([compared(name, run("dense", 20.0, parts_s={})) for name in "ab"]))
    assert not bare.axes[1].patches
