import hashlib
import json

import numpy
import simpy
import yaml

import dipsim
from dipsim.results.folder import COMMANDS, OTHERS, TABLES, clear_results, command_of
from dipsim.results.provenance import write_origin


def test_a_folder_says_where_its_results_come_from(tmp_path):
    (tmp_path / "t.bin").write_bytes(b"trace")
    out = tmp_path / "out"
    write_origin(out, {"trace": "t", "tokens": 7}, {"trace": tmp_path / "t.bin"}, ("simpy", "numpy"), note=[1])
    assert yaml.safe_load((out / "experiment.yaml").read_text()) == {"trace": "t", "tokens": 7}
    found = json.loads((out / "provenance.json").read_text())
    assert found["sha256"] == {"trace": hashlib.sha256(b"trace").hexdigest()}
    assert found["packages"] == {"simpy": simpy.__version__, "numpy": numpy.__version__}
    assert (found["dipsim"], found["note"]) == (dipsim.__version__, [1])


def test_what_an_earlier_command_left_is_removed_and_nothing_else(tmp_path):
    stale = (
        *COMMANDS,
        *TABLES,
        *OTHERS,
        "sweep.parquet",
        "experts.parquet",
        "speed.svg",
        "speed.png",
        "winner_a-b.svg",
        "latency.png",
    )
    mine = ("notes.txt", "logo.svg", "logo.png", "report.parquet", "experiment.yaml")
    for name in (*stale, *mine, "points"):
        (tmp_path / name).write_text("old")
    clear_results(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((*mine, "points"))
    clear_results(tmp_path / "nowhere")


def test_a_folder_is_known_by_the_table_with_its_answers(tmp_path):
    assert command_of(tmp_path / "nowhere") == command_of(tmp_path) == "run"
    for name in reversed(("sweep.csv", "solve.csv", "splits.csv", "compare.csv", "summary.json")):
        (tmp_path / name).write_text("")
        assert command_of(tmp_path) == COMMANDS[name]
    assert command_of(tmp_path) == "sweep"
