"""README, tutorial and how-to pages are executed: bash and python blocks, in order, in an empty folder for each page.

A text block says what the block before it prints. (`sh` blocks take a network, a model, a GPU or hours.)
"""

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/tutorial/*.md", "docs/how-to/*.md")
WRITTEN = ("*.md", "docs/**/*.md", "traces/*.md")
MADE = ("imports.svg", "columns.md")  # by docs/hooks.py
CODE = (
    "dipsim/**/*.py",
    "policies/**/*.py",
    "benchmarks/*.py",
    "tests/**/*.py",
    "examples/**/*.yaml",
    "devices/*.yaml",
)


def found(*patterns):
    return [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def blocks():
    for page in found(*PAGES):
        text = page.read_text(encoding="utf-8")
        all_of_page = re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
        for (language, code), (after, shown) in pairwise([*all_of_page, ("", "")]):
            if language in ("bash", "python"):
                group = pytest.mark.xdist_group(page.stem)  # later blocks use the files of earlier ones
                yield pytest.param(page.stem, language, code, shown * (after == "text"), marks=group, id=page.stem)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = {}
    return lambda page: made.get(page) or made.setdefault(page, tmp_path_factory.mktemp(page))


@pytest.mark.slow
@pytest.mark.parametrize(("page", "language", "code", "shown"), [*blocks()])
def test_block(page, language, code, shown, folder):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
    }
    code = code.replace("--tokens 64", "--tokens 16")  # of a large model: the same commands, sooner
    command = ["bash", "-euc", code] if language == "bash" else [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder(page), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    assert [line for line in shown.splitlines() if line not in printed] == []


def test_links_lead_somewhere():
    for page in found(*WRITTEN):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            there = target.startswith("https://") or target.endswith(MADE) or (page.parent / target).exists()
            assert there, (page, target)


def test_code_names_pages_that_are_there():
    for path in found(*CODE):
        for name in re.findall(r"\bdocs/[\w/-]+\.(?:md|png|csv)\b", path.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), (path, name)
