"""The figures, from tables written by hand: complete, honest about the perplexity, the same bytes each time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from dipsim.basics.errors import InputError
from dipsim.figures.run import draw_run
from dipsim.results.folder import read_experts, read_tables

NAMES = ("latency", "policies", "hit_rate_by_layer", "token_gantt")
LONG = "dip-ca(keep=0.75, gamma=0.5, fixed_top_n=16)"
Perplexities = dict[str, float | None]


def run(policy: str, tokens: int, perplexity: float | None) -> dict[str, object]:
    """One object of summary.json, with a key that no figure needs."""
    setting = {
        "model": "tiny",
        "device": "paper",
        "layout": "bundled",
        "eviction": "lfu",
        "timing": "serial",
        "start": "warm",
    }
    setting |= {"dram_bytes": 64e6, "tokens": tokens, "energy_j_per_token": 0.0123 if tokens == 3 else None}
    speed = 75.0 if "dip" in policy else 50.0
    shares = {"hit_rate": 0.5, "mlp_fraction_read": 0.75, "utilisation": {"flash": 1.0}}
    return {"policy": policy, **setting, "tokens_per_s": speed, "latency_s": {"mean": 1 / speed}, **shares,
            "perplexity": perplexity}  # fmt: skip


def write_tables(folder: Path, perplexities: Perplexities, tokens: int = 3, layers: int = 4) -> Path:
    """An output folder as documented: every layer reads 1 ms from Flash and 0.1 ms from DRAM."""
    folder.mkdir()
    token_rows = ["policy,token,sequence,start_s,latency_s,flash_s,dram_s,compute_s,wait_s"]
    layer_rows = ["policy,layer,hit_rate,dram_bytes_per_token,flash_bytes_per_token"]
    span_rows = ["policy,token,resource,layer,step,request_s,start_s,end_s,bytes"]
    for policy in perplexities:
        token_rows += [f'"{policy}",{t},0,{t * 0.02},0.02,0.015,0.005,0.0,0.0' for t in range(tokens)]
        layer_rows += [f'"{policy}",{layer},{0.5 + 0.001 * layer},1e6,1e6' for layer in range(layers)]
        for ms in range(layers):
            span_rows.append(f'"{policy}",0,flash,{ms},whole,{ms / 1e3},{ms / 1e3},{(ms + 0.9) / 1e3},1e6')
            span_rows.append(f'"{policy}",0,dram,{ms},whole,{ms / 1e3},{(ms + 0.9) / 1e3},{(ms + 1) / 1e3},1e6')
        span_rows.append(f'"{policy}",0,compute,{layers},lm_head,{layers / 1e3},{layers / 1e3},{layers / 900},0.0')
    runs = [run(policy, tokens, perplexity) for policy, perplexity in perplexities.items()]
    (folder / "summary.json").write_text(json.dumps(runs))
    for name, rows in (("tokens", token_rows), ("layers", layer_rows), ("spans", span_rows)):
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return folder


def texts(path: Path) -> list[str]:
    """What an SVG says, line by line."""
    return [element.text or "" for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


pytestmark = pytest.mark.xdist_group("figures")  # that are drawn once for all


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plots") / "out"
    paths = draw_run(write_tables(folder, {"dense": 16.81, "dip(cost=$5, rest=$6)": 109.25, LONG: None}))
    assert paths == [folder / f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")]
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_names_its_setting_and_its_price(drawn: Path, name: str) -> None:
    assert (drawn / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (drawn / f"{name}.png").stat().st_size > 10_000
    said = "\n".join(texts(drawn / f"{name}.svg"))
    assert "tiny · paper · DRAM 64 MB · layout bundled · eviction lfu · timing serial · start warm · 3 tokens" in said
    assert all(price in said for price in ("16.81", "109.2", "not measured"))
    assert all(policy in said for policy in ("dense", "dip(cost=$5, rest=$6)", "dip-ca(keep=0.75, gamma=0.5,"))


def captured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures of a folder by name, none of them saved."""
    found: dict[str, Figure] = {}
    monkeypatch.setattr("dipsim.figures.run.save_figure", lambda figure, path: found.update({path.name: figure}) or [])
    draw_run(folder)
    return found


def with_latencies(folder: Path, latencies: dict[str, list[float]]) -> Path:
    """A folder whose tokens take so many seconds, all of them for Flash."""
    write_tables(folder, dict.fromkeys(latencies), tokens=len(next(iter(latencies.values()))))
    rows = [f'"{policy}",{t},0,0,{s},{s},0,0,0' for policy, of in latencies.items() for t, s in enumerate(of)]
    (folder / "tokens.csv").write_text("\n".join([(folder / "tokens.csv").read_text().split("\n")[0], *rows, ""]))
    return folder


REST = [0.02] * 59


@pytest.mark.parametrize(
    ("latencies", "top", "said"),
    [
        ({"dense": [0.2, *REST]}, 25.0, ["← token 0: 200 ms"]),
        ({"dense": [0.2, 0.1, *REST]}, 25.0, ["← 2 tokens up to 200 ms"]),
        ({"dense": [0.03, *REST]}, 31.5, []),  # not so much more that it flattens the rest
        ({"dense": [0.2, 0.2, 0.2, 0.2, *REST]}, 210.0, []),  # too many to be an exception
        ({"dense": [0.2] * 60, "dip": [0.02] * 60}, 210.0, []),
        ({"dense": [0.05] * 60, "dip": [*REST, 0.4]}, 62.5, ["← token 59: 400 ms"]),
        ({"dense": [0.02]}, 21.0, []),
        ({"dense": [0.02, 0.0, 0.0]}, 21.0, []),
    ],
)
def test_a_spike_does_not_flatten_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, latencies: dict[str, list[float]], top: float, said: list[str]
) -> None:
    panels = captured(with_latencies(tmp_path / "out", latencies), monkeypatch)["latency"].axes
    assert panels[0].get_ylim() == pytest.approx((0, top))
    assert [text.get_text() for axes in panels for text in axes.texts if "←" in text.get_text()] == said
    assert panels[0].get_ylabel() == "latency (ms)"


def test_long_times_are_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panels = captured(with_latencies(tmp_path / "out", {"dense": [2.0, 3.0]}), monkeypatch)["latency"].axes
    assert (panels[0].get_ylabel(), panels[0].get_ylim()[1]) == ("latency (s)", pytest.approx(3.15))


def changed_runs(folder: Path, **fields: list[Any]) -> Path:
    """The folder with fields of its summary changed, a value each run."""
    runs = json.loads((folder / "summary.json").read_text())
    for name, values in fields.items():
        runs = [each | {name: value} for each, value in zip(runs, values, strict=True)]
    (folder / "summary.json").write_text(json.dumps(runs))
    return folder


def test_prices_begin_near_the_data_and_have_their_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tables(tmp_path / "out", {"dense": 16.8, "dip": 17.2, "dip-ca": None})
    changed_runs(folder, perplexity_standard_error=[0.0, 0.1, None], energy_j_per_token=[2.0, 0.5, 0.25])
    *_, energy, prices = captured(folder, monkeypatch)["policies"].axes
    assert prices.get_xlim() == pytest.approx((16.8 - 0.05, 17.3 + 0.55))  # the data span 0.5
    assert [text.get_text() for text in prices.texts] == ["not measured", "16.80", "17.20 ± 0.10"]
    ((_, _, (bars,)),) = prices.containers
    ends = [segment[:, 0].tolist() for segment in bars.get_segments()]
    assert ends == [pytest.approx([16.8, 16.8]), pytest.approx([17.1, 17.3])]
    assert energy.get_title(loc="left") == "energy (J/token)"
    assert [bar.get_width() for bar in energy.patches] == [2.0, 0.5, 0.25]


def test_nothing_measured_is_no_axis_of_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prices = captured(write_tables(tmp_path / "out", {"dense": None}), monkeypatch)["policies"].axes[-1]
    assert (len(prices.get_xticks()), [text.get_text() for text in prices.texts]) == (0, ["not measured"])


def test_of_a_path_in_a_label_the_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tables(tmp_path / "out", {"precision(calibration='/far/away/q4.safetensors')": None})
    changed_runs(folder, layout=["./far/away/own.safetensors"])
    for figure in captured(folder, monkeypatch).values():
        figure.draw_without_rendering()
        said = " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", "")
        assert "precision(calibration='q4.safetensors')" in said
        assert "layout own.safetensors" in said
        assert "away" not in said


def test_streams_are_told_apart(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "streams", {"dense": 16.81}, tokens=6)
    rows = (folder / "tokens.csv").read_text().splitlines()
    streams = ["stream", 0, 0, 1, 1, 1, 2]
    (folder / "tokens.csv").write_text("".join(f"{row},{of}\n" for row, of in zip(rows, streams, strict=True)))
    draw_run(folder)
    drawn = (folder / "latency.svg").read_text()
    assert texts(folder / "latency.svg").count("the next stream, side by side with the others") == 1
    assert drawn.count("stroke-dasharray") == 3  # two lines and one in the legend


def test_what_began_before_the_token_is_drawn_from_its_start(tmp_path: Path) -> None:
    """A bar of a guess stays in its panel: none reaches left of the axes."""
    folder = write_tables(tmp_path / "early", {"dense": 16.81})
    with (folder / "spans.csv").open("a") as file:
        file.write(
            '"dense",0,flash,0,early,-0.002,-0.002,0.0005,1e6\n"dense",0,flash,0,gone,-0.003,-0.003,-0.001,1e6\n'
        )
    draw_run(folder)
    drawn = ElementTree.parse(folder / "token_gantt.svg").iter("{http://www.w3.org/2000/svg}text")
    places = {text.text: float(text.attrib.get("x", "nan")) for text in drawn}
    assert places["early 0"] > places["the grey part enlarged, with layer numbers"]  # which begins where the axes do
    assert "gone 0" not in places


def test_a_long_setting_is_not_cut_off(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "long", {"dense": 16.81})
    runs = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps([each | {"device": "d" * 150} for each in runs]))
    draw_run(folder)
    width = float(ElementTree.parse(folder / "latency.svg").getroot().attrib["width"].removesuffix("pt")) / 72
    assert width > 0.07 * (150 + len(" · DRAM 64 MB · layout bundled · eviction lfu · timing serial · start warm"))


def test_speed_is_compared_with_dense(drawn: Path) -> None:
    assert {"50.0 (1.00x)", "75.0 (1.50x)"} <= set(texts(drawn / "policies.svg"))


def test_energy_is_drawn_where_it_is_known(drawn: Path, tmp_path: Path) -> None:
    assert {"energy (mJ/token)", "12.3"} <= set(texts(drawn / "policies.svg"))
    draw_run(write_tables(tmp_path / "unknown", {"dense": 16.81}, tokens=2))
    assert "energy (mJ/token)" not in texts(tmp_path / "unknown/policies.svg")


def test_parts_that_took_no_time_are_not_in_the_legend(drawn: Path) -> None:
    said = set(texts(drawn / "latency.svg"))
    assert {"Flash", "DRAM"} <= said
    assert not {"compute", "waiting"} & said


def test_only_whole_figures_are_left_in_the_folder(drawn: Path) -> None:
    assert len(list(drawn.iterdir())) == 4 + 2 * len(NAMES)


@pytest.mark.slow
def test_many_policies_with_long_names_fit(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "out", {f"{LONG}#{index}": None for index in range(9)}, tokens=40, layers=10)
    draw_run(folder)
    assert texts(folder / "latency.svg").count("perplexity: not measured") == 9
    assert "75.0" in texts(folder / "policies.svg")  # no dense, no ratio


@pytest.mark.slow
def test_the_smallest_run_gives_the_same_bytes_twice_and_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "out", {"dip": 16.81}, tokens=1, layers=1)
    first = [path.read_bytes() for path in draw_run(folder)]
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": "another"}):
        assert [path.read_bytes() for path in draw_run(folder)] == first
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["summary.json", "tokens.csv", "layers.csv", "spans.csv"])
def test_a_missing_table_says_what_to_run(tmp_path: Path, name: str) -> None:
    folder = write_tables(tmp_path / "out", {"dense": None})
    (folder / name).unlink()
    with pytest.raises(InputError) as error:
        draw_run(folder)
    if name == "summary.json":
        assert str(error.value).startswith(f"{folder}: has no sweep.csv, solve.csv, ")
        assert str(error.value).endswith("; give the output folder of a command that has ended")
        return
    assert str(error.value).startswith(f"{folder / name}: cannot be read")
    assert str(error.value).endswith("; run `python -m dipsim run` again")
    (folder / "experiment.yaml").write_text("")
    with pytest.raises(InputError, match=f"; run `python -m dipsim run {folder}/experiment.yaml --out {folder}` again"):
        draw_run(folder)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("summary.json", "{}", "summary.json: must be a list"),
        ("summary.json", "[]", "summary.json: must not be empty"),
        ("summary.json", "\x00", "summary.json: Invalid JSON"),
        ("summary.json", '[{"policy": "dense"}]', "device: is required but missing"),
        ("summary.json", json.dumps([run("dense", 3, None), run("dense", 3, None)]), "must stand there once"),
        ("summary.json", json.dumps([run("dense", 3, None), run("dip", 4, None)]), "in the same setting"),
        ("summary.json", json.dumps([run("dense", 3, float("nan"))]), "perplexity"),
        ("tokens.csv", "", "has no rows"),
        ("layers.csv", "policy,layer\ndense,0\n", "hit_rate"),
        ("layers.csv", "policy,layer,hit_rate\ndense,0,much\n", "much"),
        ("layers.csv", "policy,layer,hit_rate\ndense,0,inf\n", "'inf' is not a number from 0 to 1"),
        ("layers.csv", "policy,layer,hit_rate\ndip,0,0.5\n", "row 1: its policy is not in summary.json"),
    ],
)
def test_a_foreign_table_is_one_line_and_draws_nothing(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    folder = write_tables(tmp_path / "out", {"dense": None})
    (folder / name).write_text(content)
    with pytest.raises(InputError) as error:
        draw_run(folder)
    message = str(error.value)
    assert message.startswith(f"{folder / name}: ")
    assert complaint in message
    assert "\n" not in message
    assert not list(folder.glob("*.png"))


def test_a_missing_folder_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: has no .*summary\.json; give the output folder"):
        draw_run(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def changed(folder: Path, name: str, change: Callable[[list[str]], list[str]]) -> None:
    lines = (folder / name).read_text().splitlines()
    (folder / name).write_text("\n".join(change(lines)) + "\n")


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("tokens.csv", lambda rows: rows[:2] + rows[3:], "row 2: its token does not follow the one before"),
        ("tokens.csv", lambda rows: rows[:3] + rows[2:], "row 3: its token does not follow the one before"),
        ("tokens.csv", lambda rows: rows[:-1], "has 2 of 3 rows of 'dip'"),
        ("tokens.csv", lambda rows: [row.replace("latency_s", "late") for row in rows], "latency_s: is missing"),
        (
            "tokens.csv",
            lambda rows: [*rows[:-1], rows[-1].replace("0.015", "-1")],
            "row 6: '-1' is not a number from 0",
        ),
        ("layers.csv", lambda rows: rows[:1] + rows[2:], "row 1: its layer does not follow the one before"),
        ("layers.csv", lambda rows: rows[:5], "has no rows of 'dip', which is in summary.json"),
        ("layers.csv", lambda rows: rows[:-1], "has 3 of 4 rows of 'dip'"),
        ("spans.csv", lambda rows: [*rows[:-1], rows[-1].replace("0,compute", "1,compute")], "is of another token"),
        ("spans.csv", lambda rows: [*rows, '"dip",0,flash,0,whole,2,2,1,1e6'], "ends before it starts"),
        ("experts.csv", lambda rows: rows[:2] + rows[3:], "row 2: its expert does not follow the one before"),
        ("experts.csv", lambda rows: rows + rows[-2:], "row 9: is there twice"),
        ("experts.csv", lambda rows: rows[:-2], "has 2 of 4 rows of 'dip'"),
    ],
)
def test_rows_that_are_missing_or_too_many(tmp_path: Path, name: str, change: Any, complaint: str) -> None:
    folder = write_tables(tmp_path / "out", {"dense": None, "dip": None})
    uses = [f"{policy},{layer},{expert},1" for policy in ("dense", "dip") for layer in (1, 3) for expert in (0, 1)]
    (folder / "experts.csv").write_text("\n".join(["policy,layer,expert,tokens", *uses]) + "\n")
    read_experts(folder, read_tables(folder)[0])
    changed(folder, name, change)
    with pytest.raises(InputError) as error:
        draw_run(folder)
    assert str(error.value).startswith(f"{folder / name}: ")
    assert complaint in str(error.value)
    assert str(error.value).endswith("; run `python -m dipsim run` again")
    assert not list(folder.glob("*.png"))
