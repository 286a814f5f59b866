"""Tables of a folder of results: numbers in columns of numbers, and .parquet beside .csv where it is asked for."""

import sys

import pandas as pd
import pytest
import yaml
from hand import DEVICE, hand_trace

from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.results.table_files import check_parquet, write_table
from dipsim.results.tables import sweep_table
from dipsim.study.experiment import Experiment
from dipsim.study.run import run, write_run
from dipsim.study.sweep import sweep

TABLES = ("tokens", "layers", "spans")


@pytest.fixture
def make(tmp_path):
    trace = hand_trace(tmp_path)
    (tmp_path / "hand.yaml").write_text(yaml.safe_dump(DEVICE))

    def experiment(**fields):
        base = {"trace": str(trace.path), "device": str(tmp_path / "hand.yaml"), "start": "cold",
                "policies": ["dense", {"magnitude": {"fraction": 0.375}}]}  # fmt: skip
        return parse(Experiment, base | fields, "exp.yaml")

    return experiment


def test_a_run_in_both_formats(make, tmp_path):
    chosen, out = make(), tmp_path / "out"
    results = run(chosen)
    write_run(chosen, results, out, parquet=True)
    for name in TABLES:
        pd.testing.assert_frame_equal(pd.read_parquet(out / f"{name}.parquet"), pd.read_csv(out / f"{name}.csv"))
    assert len(pd.read_parquet(out / "tokens.parquet")) == 2 * 5
    write_run(chosen, results, out)  # and no older table stays beside a newer one
    assert not list(out.glob("*.parquet"))


def test_a_sweep_in_both_formats(make, tmp_path):
    measured = {"policy": "dense", "parameters": "{}", "mlp_fraction": 0.5, "eviction": "lfu", "tokens": 5, "length": 5,
                "perplexity": 12.5, "standard_error": 0.25, "hit_rate": 0.5, "mlp_fraction_read": 1, "device": "hand",
                "timing": "serial", "tokens_per_s": 1.0, "text": "t", "model": "hand"}  # fmt: skip
    pd.DataFrame([measured]).to_csv(tmp_path / "hand.quality.csv", index=False)
    chosen, out = make(sweep={"dram": ["352 B", "400 B"]}), tmp_path / "out"
    table = sweep(chosen, out, parquet=True)
    assert list(sweep_table(table).columns[-1].cells) == ["12.50", "not measured"]
    some = table.assign(perplexity=[12.5, None, None, 12.25])
    assert list(sweep_table(some).columns[-1].cells) == ["several", "several"]
    written, again = pd.read_csv(out / "sweep.csv"), pd.read_parquet(out / "sweep.parquet")
    assert written.columns.tolist() == again.columns.tolist()
    for table in (written, again):
        assert table["perplexity"].dtype == table["guesses_late_per_token"].dtype == float
        prices = table[["perplexity", "perplexity_standard_error", "perplexity_source"]].to_numpy().tolist()
        assert prices[0] == prices[2] == [12.5, 0.25, "measured"]
        assert [str(each) for each in prices[1]] == ["nan", "nan", "not measured"]
    assert again["tokens_per_s"].tolist() == written["tokens_per_s"].tolist()
    assert again["calibration"].tolist() == [""] * 4
    sweep(chosen, out)
    assert not (out / "sweep.parquet").exists()


def test_a_column_of_several_types_is_text(tmp_path):
    """As swept values may be; what is not there stays nothing."""
    mixed = pd.DataFrame({"a": [1, "60 MB", None, [1, "b"]], "b": [None] * 4, "c": [0.1, 0.2, None, 3]})
    write_table(tmp_path / "t.csv", mixed, parquet=True)
    found = pd.read_parquet(tmp_path / "t.parquet")
    assert found["a"].fillna("nothing").tolist() == ["1", "60 MB", "nothing", "[1, 'b']"]
    assert found["b"].dtype == found["c"].dtype == float
    assert found["c"].tolist()[:2] == [0.1, 0.2]


def test_without_pyarrow_it_is_one_line(monkeypatch, tmp_path, cli_run):
    check_parquet()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"--parquet: pyarrow is not installed; run `pip install 'dipsim\[parquet\]'`"):
        check_parquet()
    for command in (("run",), ("sweep", tmp_path / "any.yaml")):
        status, out, errors = cli_run(*command, "--parquet", "--out", tmp_path / "out")
        assert (status, out) == (2, "")
        assert errors.startswith("error: --parquet: pyarrow is not installed")
    assert not (tmp_path / "out").exists()
