"""The documentation builds: no link is broken, and the reference has every public name with its docstring."""

import re
import subprocess
import sys

import pytest

import dipsim

pytestmark = pytest.mark.slow


def test_the_site_builds_with_every_public_name(checkout, tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/reference/public/index.html").read_text(encoding="utf-8")
    shown = set(re.findall(r'<h2 id="dipsim\.[\w.]*?(\w+)"', page))
    assert set(dipsim.__all__) - {"__version__"} <= shown
    assert "The k largest scores" in page or "Mask [..., N] of the k largest scores" in page
    drawing = (tmp_path / "site/reference/imports.svg").read_text(encoding="utf-8")
    assert drawing.count('<g id="patch_') > 20  # boxes and arrows
