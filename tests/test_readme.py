"""The README is executed: its bash and python blocks, in order, in an empty folder. (`sh` blocks install.)"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


@pytest.mark.slow
@pytest.mark.xdist_group("readme")  # later blocks use the files of earlier ones
@pytest.mark.parametrize(("language", "code"), [b for b in BLOCKS if b[0] in ("bash", "python")])
def test_block(language, code, folder):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(README.parent),
        "PYTHONWARNINGS": "error",
    }
    code = code.replace("--tokens 64", "--tokens 16")  # of a large model: the same commands, sooner
    command = ["bash", "-euc", code] if language == "bash" else [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if code == "python -m dipsim run\n":
        shown = next(text for language, text in BLOCKS if language == "text")
        printed = [line.rstrip() for line in done.stdout.splitlines()]
        assert [line for line in shown.splitlines() if line not in printed] == []
        assert (folder / "results/quickstart/policies.png").stat().st_size > 10_000


def test_links_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (README.parent / target).exists(), target
