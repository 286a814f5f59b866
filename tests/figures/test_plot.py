"""Figures of results in memory: the same as those of a folder, and shown by notebooks."""

import pytest
from matplotlib import style

import dipsim
from dipsim.basics.errors import InputError
from dipsim.figures.run import draw_run
from dipsim.figures.style import STYLE, save_figure
from dipsim.results.folder import write_tables


@pytest.fixture
def results(tiny_trace):
    trace = tiny_trace()
    return [dipsim.simulate(trace, policy, "paper", dram="2 kB") for policy in ("dense", {"dip": {"keep": 0.6}})]


@pytest.mark.slow
def test_figures_are_those_of_the_folder(results, tmp_path):
    write_tables(results, tmp_path)
    drawn = [path for path in draw_run(tmp_path) if path.suffix == ".svg"]
    assert {path.stem for path in drawn} == {"latency", "policies", "hit_rate_by_layer", "token_gantt"}
    for path in drawn:
        with style.context(["default", STYLE]):
            again = save_figure(dipsim.plot(results, path.stem), tmp_path / "again" / path.stem)
        assert [file.read_bytes() for file in again if file.suffix == ".svg"] == [path.read_bytes()]


def test_one_result_draws_itself_and_a_notebook_shows_it(results):
    figure = results[1].plot()
    assert figure.axes[0].get_title(loc="left") == "dip(keep=0.6)"
    assert [axes.get_title(loc="left") for axes in dipsim.plot(results, "latency").axes] == ["dense", "dip(keep=0.6)"]
    content = figure._repr_png_()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(content[start : start + 4]) for start in (16, 20))
    assert (width, height) == tuple((72 * figure.get_size_inches()).astype(int))


def test_other_figures_and_results_are_refused(results):
    with pytest.raises(InputError, match=r"^plot: 'latncy' is not one of the figures .* \(did you mean latency\?\)"):
        results[0].plot("latncy")
    with pytest.raises(InputError, match="'experts_by_layer' is not one of the figures"):
        results[0].plot("experts_by_layer")
    with pytest.raises(InputError, match=r"^results: each policy must stand there once, and all in the same setting"):
        dipsim.plot([results[0], results[0]])
    with pytest.raises(InputError, match=r"^results: must not be empty"):
        dipsim.plot([])
