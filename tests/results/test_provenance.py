import hashlib
import json

import numpy
import simpy
import yaml

import dipsim
from dipsim.results.folder import FIGURES, clear_results
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


def test_what_an_earlier_run_left_is_removed_and_nothing_else(tmp_path):
    stale = ("summary.json", "timeline.json", "report.html", *(f"{name}.svg" for name in FIGURES))
    for name in (*stale, "notes.txt", "sweep.csv"):
        (tmp_path / name).write_text("old")
    clear_results(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "sweep.csv"]
    clear_results(tmp_path / "nowhere")
