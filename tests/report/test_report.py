"""The page of a folder: whole, without a network, with every figure of the tables, and nothing of theirs is code."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
import yaml
from answered import write_answers

from dipsim.basics.errors import InputError
from dipsim.report import page, parts, run
from dipsim.report import table as table_of
from dipsim.report.page import render
from dipsim.study.experiment import Experiment
from dipsim.study.run import run as run_experiment
from dipsim.study.run import write_run

NASTY = """</script><script>alert(1)</script><!--<img src=x onerror="alert('1')">&amp;"""
DEVICE = {"name": NASTY, "flash": {"read_bandwidth": "2 GB/s"}, "dram": {"capacity": "1 GB", "bandwidth": "9 GB/s"}}
PNG = b"\x89PNG"
VOID = ("meta", "img", "input", "br", "hr", "link")


class Walker(HTMLParser):
    """Walks a page: every tag must be closed. Keeps tags with attributes, the cells of tables, texts of scripts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.tables, self.raw = [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        tag = self.open[-1] if self.open else ""
        if tag in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif tag in ("script", "style"):
            self.raw.setdefault(tag, []).append(data)
        else:
            self.raw.setdefault("text", []).append(data)


@pytest.fixture
def folder(tmp_path, tiny_trace):
    """A run of two policies, the second with a nasty name, on a device with such a one; one perplexity is measured."""
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(DEVICE))
    experiment = Experiment(
        **{"trace": str(tiny_trace(tokens=10).path), "device": str(tmp_path / "own.yaml"), "start": "cold"},
        **{"dram": {"mlp_fraction": 0.5}, "policies": ["dense", {"dip": {"keep": 0.6}}]},
    )
    out = tmp_path / "out"
    write_run(experiment, run_experiment(experiment), out)
    summaries = json.loads((out / "summary.json").read_text())
    summaries[0] |= {"perplexity": 16.8134, "perplexity_standard_error": 0.07, "tokens_per_s": 1234.56}
    summaries[1] |= {"policy": NASTY, "tokens_per_s": 1851.84}
    (out / "summary.json").write_text(json.dumps(summaries))
    for name in ("tokens.csv", "layers.csv", "spans.csv"):
        table = pd.read_csv(out / name).replace({"dip(keep=0.6)": NASTY, "lm_head": f"{NASTY}step"})
        table.to_csv(out / name, index=False)
    (out / "latency.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" id="a"/>')
    (out / "latency.png").write_bytes(PNG)
    return out


@pytest.fixture
def grid(tmp_path):
    """The table of a sweep over DRAM and two policies."""
    same = {
        **{"trace": "t", "model": "m", "device": NASTY, "layout": "columns", "start": "warm", "eviction": "lfu"},
        **{"timing": "serial", "prompt": 0, "read_through": True, "stream_static": False, "tokens": 8, "hit_rate": 0.5},
        **{"flash_bandwidth_bytes_per_s": 1.5e9, "mlp_fraction_in_dram": 0.25, "flash_utilisation": 0.9},
    }
    rows = [
        same
        | {
            "policy": policy,
            "dram_bytes": dram,
            "tokens_per_s": speed,
            "key": f"{policy} {dram}",
            "ttft_s": speed / 1e3,
        }
        | {"perplexity": "not measured" if policy == NASTY else 10.5, "perplexity_standard_error": 0.25}
        for policy, dram, speed in (("dense", 2e9, 4), ("dense", 4e9, 10.25), (NASTY, 2e9, 6), (NASTY, 4e9, 15))
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "sweep.csv", index=False)
    return tmp_path


def test_a_run_is_a_whole_page_that_loads_nothing(folder):
    text = render(folder)
    walked = Walker(text)
    for tag, attributes in walked.tags:
        assert tag not in ("link", "iframe", "object", "base"), tag
        assert not {"style", "srcset", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("href", "#").startswith("#")
        assert attributes.get("src", "data:image/").startswith("data:image/")
    assert "url(" not in text
    assert not re.search(r"@import|fetch\(|XMLHttp|import\(|innerHTML", text)
    ids = [attributes["id"] for _, attributes in walked.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {href[1:] for _, a in walked.tags if (href := a.get("href"))} <= set(ids)
    assert len(text) < 5e6


def test_only_the_pages_own_script_may_run(folder):
    walked = Walker(render(folder))
    scripts = [attributes for tag, attributes in walked.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    (policy,) = (a["content"] for tag, a in walked.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        digest = hashlib.sha256(walked.raw[tag][-1].encode()).digest()
        assert f"{rule} 'sha256-{base64.b64encode(digest).decode()}'" in policy


def test_texts_of_files_are_texts(folder):
    text = render(folder)
    assert "<script>alert" not in text
    walked = Walker(text)
    assert not [a for _, a in walked.tags if a.get("src") == "x"]
    assert walked.raw["text"].count(f"tiny on {NASTY}") == 2  # title and heading
    data = json.loads(walked.raw["script"][0])
    assert f"{NASTY}step" in data["token"]["steps"]


def test_every_policy_has_its_row_with_its_price_beside_its_speed(folder):
    head, *rows = Walker(render(folder)).tables[0]
    assert head[:4] == ["policy", "tokens/s", "perplexity", "speed-up"]
    assert [row[:4] for row in rows] == [
        ["dense", "1,235", "16.81 ± 0.07", "1.00x"],
        [NASTY, "1,852", "not measured", "1.50x"],
    ]
    summaries = json.loads((folder / "summary.json").read_text())
    shares = [f"{each['parts_s']['flash'] / each['latency_s']['mean']:.1%}" for each in summaries]
    assert [row[head.index("Flash time")] for row in rows] == shares
    assert "waiting time" not in head  # nothing waits
    hits = head.index("hit rate")
    assert [row[hits] for row in rows] == [f"{each['hit_rate']:.1%}" for each in summaries]


def test_every_quantity_of_the_summary_is_there(folder):
    every = next(table for table in Walker(render(folder)).tables if table[0][0] == "quantity")
    assert every[0][1:3] == ["dense (perplexity: 16.81)", f"{NASTY} (perplexity: not measured)"]
    values = {row[0]: row[1:] for row in every[1:]}
    assert values["tokens_per_s"][:2] == ["1,235", "1,852"]
    assert values["perplexity"][:2] == ["16.81", "not measured"]
    assert values["latency_s.p95"][2] == "The time that 50, 95 or 99 % of the tokens do not exceed."
    assert values["peak_bandwidth_bytes_per_s.flash"][0] == "2 GB/s"
    assert values["dram_budget.capacity_columns.input"][0] == ""  # dense has none


def test_the_plots_have_what_the_tables_say(folder):
    data = json.loads(Walker(render(folder)).raw["script"][0])
    spans = pd.read_csv(folder / "spans.csv")
    mine = spans[spans["policy"] == "dense"]
    assert data["token"]["rows"][0] == ["Flash", "DRAM"]
    assert len(data["token"]["spans"][0]) == len(mine)
    row, layer, step, asked, start, end, size = data["token"]["spans"][0][-1]
    last = mine.iloc[-1]
    assert (data["token"]["rows"][0][row].lower(), layer) == (last["resource"], last["layer"])
    assert (data["token"]["steps"][step], size) == (last["step"], last["bytes"])
    assert [asked, start, end] == pytest.approx((1e6 * last[["request_s", "start_s", "end_s"]]).tolist(), abs=1e-3)
    tokens = pd.read_csv(folder / "tokens.csv")
    latencies = 1e6 * tokens.loc[tokens["policy"] == NASTY, "latency_s"]
    assert [sum(bar) for bar in data["latency"]["bars"][1]] == pytest.approx(latencies.tolist(), rel=1e-5)
    assert data["latency"]["parts"] == ["Flash", "DRAM"]


def test_a_long_run_is_shown_in_means_and_by_the_policies_that_fit(folder, monkeypatch):
    spans = pd.read_csv(folder / "spans.csv")
    monkeypatch.setattr(run, "MOST_BARS", 5)  # of 20
    monkeypatch.setattr(run, "MOST_SPANS", int((spans["policy"] == "dense").sum()))
    walked = Walker(render(folder))
    data = json.loads(walked.raw["script"][0])
    tokens = pd.read_csv(folder / "tokens.csv")
    mine = 1e6 * tokens.loc[tokens["policy"] == "dense", "latency_s"].to_numpy()
    means = [mine[:4].mean(), mine[4:8].mean(), mine[8:].mean()]
    assert [sum(bar) for bar in data["latency"]["bars"][0]] == pytest.approx(means, rel=1e-5)
    assert len(data["token"]["spans"]) == 1
    assert {"A bar is the mean of 4 tokens; tokens.csv has each.", "1 of 2 policies are in spans.csv only."} <= set(
        walked.raw["text"]
    )
    monkeypatch.setattr(run, "MOST_SPANS", 0)
    kinds = [a["data-kind"] for _, a in Walker(render(folder)).tags if "data-kind" in a]
    assert kinds == ["latency"]


def test_figures_are_in_the_page_as_far_as_they_fit(folder, monkeypatch):
    def sources():
        return [a["src"] for tag, a in Walker(render(folder)).tags if tag == "img"]

    (folder / "notes.svg").write_text("<svg/>")  # not a figure of ours: it has no PNG
    encoded = base64.b64encode((folder / "latency.svg").read_bytes()).decode()
    assert sources() == [f"data:image/svg+xml;base64,{encoded}"]
    bare = len(render(folder).encode())
    monkeypatch.setattr(page, "LARGEST", bare + 4000)
    (folder / "latency.svg").write_text(f"<svg>{' ' * 4000}</svg>")
    assert sources() == [f"data:image/png;base64,{base64.b64encode(PNG).decode()}"]
    (folder / "latency.png").write_bytes(PNG * 1000)
    text = render(folder)
    assert "latency.svg is damaged, or too large for this page." in text
    assert len(text) < bare + 4000
    for name in ("latency.svg", "latency.png"):  # a damaged one is left out
        (folder / name).write_bytes(b"")
        assert sources() == []


def test_a_comparison_has_no_experiment_of_its_own(tmp_path, tiny_trace):
    folder = write_answers(tiny_trace(tokens=10).path, tmp_path)["compare"]
    (folder / "experiment.yaml").write_text("of: another")
    assert "of: another" not in render(folder)


def test_the_experiment_and_where_it_comes_from(folder):
    walked = Walker(render(folder))
    assert (folder / "experiment.yaml").read_text() in walked.raw["text"]
    origin = json.loads((folder / "provenance.json").read_text())
    rows = next(table for table in walked.tables if table[0] == ["what", "which"])
    assert ["sha256.trace", origin["sha256"]["trace"]] in rows
    assert ["packages.numpy", origin["packages"]["numpy"]] in rows
    named = [table for table in walked.tables if table[0] == ["name", "unit", "meaning", "formula"]]
    assert len(named) == 4  # summary, tokens, layers, spans
    assert ["latency_s", "s", "The time of the token.", "eq. 6.15, 6.16, 6.21"] in named[1]
    (folder / "provenance.json").write_text("{")
    with pytest.raises(InputError, match=r"provenance\.json: is not JSON"):
        render(folder)


def test_a_sweep_shows_what_varies_and_names_the_rest_once(grid):
    text = render(grid)
    walked = Walker(text)
    points, same = walked.tables[:2]
    assert points == [
        ["policy", "tokens/s", "perplexity", "dram", "ttft"],
        ["dense", "4", "10.50 ± 0.25", "2 GB", "4 ms"],
        ["dense", "10.25", "10.50 ± 0.25", "4 GB", "10.2 ms"],
        [NASTY, "6", "not measured", "2 GB", "6 ms"],
        [NASTY, "15", "not measured", "4 GB", "15 ms"],
    ]
    values = {name: value for name, value, _ in same}
    assert (values["flash bandwidth"], values["hit rate"], values["eviction"]) == ("1.5 GB/s", "50.0%", "lfu")
    assert not {"dram", "policy", "key"} & set(values)
    assert walked.raw["text"].count(f"m on {NASTY}") == 2
    assert "<script>alert" not in text


def test_a_sweep_too_large_for_a_page_is_cut_and_says_so(grid, monkeypatch):
    monkeypatch.setattr(table_of, "MOST_BYTES", 400)
    walked = Walker(render(grid))
    assert len(walked.tables[0]) - 1 == 2
    assert "The first 2 of 4 rows." in walked.raw["text"]


@pytest.mark.parametrize(
    ("command", "said", "first", "behind"),
    [
        (
            "solve",
            "The flash.read_bandwidth for 1000 tokens/s",
            ["case", "answer", "found", "perplexity"],
            "samples.csv",
        ),
        ("plan-memory", "The DRAM split evenly", ["policy", "split", "latency", "perplexity"], "memory.csv"),
        ("compare", "Side by side", ["policy", "compared", "tokens/s", "ratio", "perplexity"], None),
    ],
)
def test_every_answer_is_a_page(tmp_path, tiny_trace, command, said, first, behind):
    folder = write_answers(tiny_trace(tokens=10).path, tmp_path)[command]
    walked = Walker(render(folder))
    assert "tiny on paper" in walked.raw["text"]
    assert any(text.startswith(said) for text in walked.raw["text"])
    answers = walked.tables[0]
    assert answers[0][: len(first)] == first
    assert {row[first.index("perplexity")] for row in answers[1:]} == {"not measured"}
    assert len(answers) - 1 == len(pd.read_csv(folder / table_of.SHOWN[command].table))
    tables = [len(pd.read_csv(folder / behind)) + 1] if behind else []
    assert [len(table) for table in walked.tables[1 : 1 + len(tables)]] == tables
    assert walked.tables[1 + len(tables)][0] == ["quantity", "value", "meaning"]


def test_a_price_that_is_empty_was_not_measured(grid):
    table = pd.read_csv(grid / "sweep.csv")
    assert parts.price("", "").shown == parts.price(None, None).shown == "not measured"
    assert parts.price(table["perplexity"][0], None).shown == "10.50"


def test_the_same_folder_gives_the_same_bytes(folder, grid):
    assert render(folder) == render(folder)
    before = render(grid)
    page.write_report(grid, grid / "report.html")
    assert (grid / "report.html").read_text(encoding="utf-8") == render(grid) == before


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (1.5e9, "bytes", "1.5 GB"),
        ("0", "bytes", "0 B"),
        (2.5e9, "bytes/s", "2.5 GB/s"),
        (0, "bytes/s", "0 B/s"),
        (0.01234, "s", "12.3 ms"),
        (0.0, "s", "0 s"),
        (0.0123, "J", "12.3 mJ"),
        (0.5231, "share", "52.3%"),
        (71.7423, "tokens/s", "71.74"),
        (1234, "number", "1,234"),
        (0.01234, "ratio", "0.0123"),
        (3e18, "number", "3e+18"),
        ("1 GB/s", "as written", "1 GB/s"),
        ("unknown", "s", "unknown"),
        (float("inf"), "s", "inf"),
        (None, "s", ""),
    ],
)
def test_numbers_are_for_people(value, unit, shown):
    assert parts.cell(value, unit).shown == shown


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("500 MB/s", 5e8),
        ("1 GB/s", 1e9),
        ("1 MiB", 2**20),
        ("0.25", 0.25),
        ("8 us", 8e-6),
        ("idle", None),
        ("inf", None),
    ],
)
def test_what_is_written_with_a_unit_sorts_by_its_size(text, number):
    found = parts.cell(text, "as written")
    assert (found.shown, found.number) == (text, number and pytest.approx(number))


def test_labels_leave_the_unit_to_the_cells():
    names = ("tokens_per_s", "flash_bytes_per_token", "flash_bandwidth_bytes_per_s", "energy_j_per_token")
    assert [parts.label(name) for name in names] == ["tokens/s", "flash/token", "flash bandwidth", "energy/token"]
    names = ("latency_s.mean", "latency_p95_s", "flash_waited_s", "dram_bytes", "flash.read_bandwidth", "streams")
    assert [parts.label(name) for name in names] == [
        *("latency mean", "latency p95", "flash waited", "dram", "flash read bandwidth", "streams")
    ]
