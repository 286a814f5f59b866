"""The wheel, in an empty environment and an empty folder, does the main job; nothing of ours lands beside it."""

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("packaging")]  # one wheel serves both tests

PLUGIN = """from dipsim import Group, Policy

class Mine(Policy):
    fraction: float = 0.5
    def groups(self, shape):
        return [Group("neuron", ("down_proj",), "neuron", int(self.fraction * shape.intermediate_size))]
    def scores(self, group, acts):
        return abs(acts.glu)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    checkout, out = Path(__file__).resolve().parent.parent, tmp_path_factory.mktemp("dist")
    copy = tmp_path_factory.mktemp("source") / "dipsim"
    subprocess.run(["git", "clone", "--quiet", checkout, copy], check=True)
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, copy], check=True, capture_output=True)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_contents(wheel):
    names = zipfile.ZipFile(wheel[0]).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dipsim"}
    for name in (
        "policies/dip.py",
        "devices/paper.yaml",
        "traces/smollm2-135m.safetensors",
        "examples/quickstart.yaml",
        *(f"report/page.{kind}" for kind in ("html", "css", "js")),
    ):
        assert f"dipsim/{name}" in names
    with tarfile.open(wheel[1]) as archive:
        everything = archive.getnames()
    for name in (
        "tests/memory/test_cache.py",
        "tests/data/cache_hits.json",
        "Makefile",
        "CHANGELOG.md",
        "constraints.txt",
    ):
        assert any(member.endswith(f"/{name}") for member in everything), name


def required(path):
    """What the wheel asks for without an extra, as its metadata says."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    found = re.findall(r"^Requires-Dist: (.*)$", metadata, flags=re.MULTILINE)
    return [line for line in found if "extra ==" not in line]


def put_in(site, wanted):
    """Link into `site` what is wanted and all that it needs, as installed here: pip would unpack the same for long."""
    waiting, seen = list(wanted), set()
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(requirement.name)
        found = distribution(requirement.name)
        assert requirement.specifier.contains(found.version, prereleases=True), requirement
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            (site / top).symlink_to(found.locate_file(top))
        waiting += found.requires or ()
    return seen


def test_runs_from_an_empty_folder(wheel, tmp_path):
    """With what the wheel requires, and nothing else that is installed here."""
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    assert {"numpy", "pandas", "simpy"} <= put_in(site, required(wheel[0]))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel[0]]
    subprocess.run(pip, check=True)
    subprocess.run([*pip[:5], "check"], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "mine.py").write_text(PLUGIN)

    def dipsim(*arguments):
        subprocess.run([python, "-W", "error", "-m", "dipsim", *arguments], cwd=empty, check=True, capture_output=True)

    dipsim("run")
    summaries = json.loads((empty / "results/quickstart/summary.json").read_text())
    assert summaries[0]["policy"] == "dense"
    assert len({path.suffix for path in (empty / "results/quickstart").iterdir()}) >= 4
    dipsim("run", "--policy", "./mine.py", "--policy", "magnitude", "--out", "mine")
    mine, magnitude = json.loads((empty / "mine/summary.json").read_text())
    assert mine["tokens_per_s"] == magnitude["tokens_per_s"]
    done = subprocess.run([python, "-c", "import dipsim.live.record"], capture_output=True, text=True, check=False)
    assert "No module named 'torch'" in done.stderr
