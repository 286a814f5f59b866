"""`benchmarks/validate.py` holds, and docs/background/validation.md says what it prints."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_every_bound_holds_and_the_page_is_current(checkout):
    command = [sys.executable, checkout / "benchmarks/validate.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(checkout)})
    assert done.returncode == 0, done.stderr
    page = (checkout / "docs/background/validation.md").read_text(encoding="utf-8")
    shown = [line.rsplit("|", 3)[0] for line in page.splitlines()]
    for line in done.stdout.splitlines():
        assert line.rsplit("|", 3)[0] in shown, "run `python benchmarks/validate.py --write`"
