"""Every column and every field that is written has its entry, and no entry is of something that is not written."""

import re

import pandas as pd
import pytest
import tiny_mixture
import yaml
from hand import HAND, hand_trace

from dipsim.results.compare import Compared, rows
from dipsim.results.dictionary import DICTIONARY, find, flatten, markdown
from dipsim.results.folder import runs_of, write_tables
from dipsim.results.result import shown_token
from dipsim.sparsity.plugins import load_policy
from dipsim.study.experiment import Experiment
from dipsim.study.memory import plan_memory, write_memory
from dipsim.study.passes import RESULTS
from dipsim.study.points import points
from dipsim.study.question import Target
from dipsim.study.run import run, simulate
from dipsim.study.solve import solve
from dipsim.study.sweep import line

PHONE = {
    **{"name": "phone", "compute": {"throughput": "1 GFLOP/s"}},
    **{"flash": {"read_bandwidth": "1 MB/s", "capacity": "768 B"}, "dram": {"capacity": "1 GB", "bandwidth": "1 GB/s"}},
    "tiers": [{"name": "card", "bandwidth": "100 kB/s", "command_time": "1 ms"}],
}
SWEPT = {
    **{"flash.read_bandwidth": "2 MB/s", "dram.bandwidth": "2 GB/s", "compute.throughput": "2 GFLOP/s"},
    **{"energy.flash": "1 pJ/B", "cache.size": "3 kB", "prefetch.units": 1, "oracle.recall": 0.5, "streams": 2},
    **{"speculate.draft": 2, "turns": "round-robin", "contention": True, "bits.attention": 8, "split": "even"},
}


@pytest.fixture
def clocked(tmp_path):
    """An experiment on a mixture with all that depends on the clock."""
    (tmp_path / "phone.yaml").write_text(yaml.safe_dump(PHONE))
    trace = tiny_mixture.write(tmp_path / "tiny.safetensors")
    return Experiment(
        **{"trace": str(trace.path), "device": str(tmp_path / "phone.yaml"), "policies": ["experts"], "streams": 2},
        **{"prefetch": {"by": {"oracle": {"recall": 0.75}}, "units": 2, "buffer": "800 B"}, "start": "cold"},
        **{"speculate": {"draft": 1, "acceptance": 0.5}, "cache": {"size": "4 kB"}},
    )


@pytest.fixture
def names(tmp_path, clocked):
    """What is written, by file: of a run of columns, of one of experts on the clock, and of a sweep."""
    columns = simulate(hand_trace(tmp_path), load_policy("magnitude", fraction=0.375), HAND, dram=352.0)
    results = [columns, *run(clocked)]
    tables = {
        "tokens.csv": [result.tokens() for result in results],
        "layers.csv": [result.layers() for result in results],
        "spans.csv": [result.spans(shown_token(result.plan.rows)) for result in results],
        "experts.csv": [results[1].experts()],
        "summary.json": [flatten(result.summary()) for result in results],
    }
    swept = clocked.model_copy(update={"sweep": {name: [value] for name, value in SWEPT.items()}})
    (point,) = points(Experiment(**swept.resolved()))
    tables["sweep.csv"] = [line(point, dict.fromkeys(RESULTS))]
    wanted = Target.read("1 tokens/s")
    (answer,) = solve(clocked, wanted, "dram.bandwidth", tmp_path / "solved", low="1 GB/s", high="2 GB/s")
    tables |= {name: [line(point, dict.fromkeys(RESULTS)), answer.row] for name in ("samples.csv", "solve.csv")}
    tables["solve.csv"] += [pd.read_csv(tmp_path / "solved/solve.csv")]
    planned = Experiment(trace=str(hand_trace(tmp_path).path), policies=["magnitude"], dram="352 B")
    write_memory(planned, plan_memory(planned), tmp_path / "memory")
    tables |= {name: [pd.read_csv(tmp_path / "memory" / name)] for name in ("memory.csv", "splits.csv")}
    sides = [Compared(name, runs_of([columns]), {}) for name in "ab"]
    tables["compare.csv"] = [rows(sides)]
    return {file: {str(name) for part in parts for name in part} for file, parts in tables.items()}


def test_every_name_has_an_entry_and_every_entry_a_name(names):
    assert set(names) == set(DICTIONARY)
    for file, entries in DICTIONARY.items():
        found = {name: find(file, name) for name in names[file]}
        assert [name for name, entry in found.items() if entry is None] == [], file
        unused = {entry.name for entry in entries} - {entry.name for entry in found.values()}
        assert unused == set(), file


def test_names_are_matched_by_the_first_that_fits(names):
    assert {"card_s", "guesses_late", "stream", "accepted", "energy_j"} <= names["tokens.csv"]
    assert find("tokens.csv", "card_s") == find("tokens.csv", "flash_s") != find("tokens.csv", "latency_s")
    assert find("summary.json", "parts_s.card").source == "eq. 6.27"
    assert find("summary.json", "streams.1.tokens_per_s").unit == "tokens/s"
    assert find("sweep.csv", "oracle.recall").meaning == "Swept: a parameter of the prefetcher."
    assert find("sweep.csv", "nothing") is None


def test_a_source_is_an_equation_or_a_section_that_there_is(checkout):
    background = (checkout / "docs/background/equations.md").read_text()
    for entries in DICTIONARY.values():
        for entry in entries:
            for number in re.findall(r"\d+\.\d+", entry.source):
                assert f"- **{number}** " in background, entry
            for section in re.findall(r"section (\d+)", entry.source):
                assert f"\n## {section} " in background, entry


def test_a_folder_says_what_its_columns_mean(tmp_path, clocked):
    write_tables(run(clocked), tmp_path / "out")
    text = (tmp_path / "out/columns.md").read_text()
    files = ("tokens.csv", "layers.csv", "spans.csv", "experts.csv", "summary.json")
    assert text == markdown(files)
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == list(files)
    assert "\n| `expert` | index | The expert of the layer, from 0. |  |\n" in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == sum(len(DICTIONARY[file]) for file in files)
    assert {row.count("|") for row in rows} == {5}
