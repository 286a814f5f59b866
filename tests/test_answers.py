"""`examples/answers.sh`, as somebody would run it who has five questions."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest


@pytest.mark.slow
def test_five_questions_are_answered(tmp_path, checkout):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(checkout),
        "PYTHONWARNINGS": "error",
    }
    script = checkout / "examples/answers.sh"
    done = subprocess.run(["sh", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = pd.read_csv(tmp_path / "results/mine-dram/solve.csv").set_index("case")
    assert (answers["tokens_per_s"] >= 10).all()
    assert list(answers.index) == ["dense", "dip", "mine(fraction=0.5)"]
    assert set(answers["perplexity_source"]) == {"not measured"}
    compared = pd.read_csv(tmp_path / "results/compare/compare.csv")
    assert compared["policy"].value_counts().tolist() == [2] * 4
    page = (tmp_path / "results/mine/report.html").read_text(encoding="utf-8")
    assert "mine(fraction=0.5)" in page
