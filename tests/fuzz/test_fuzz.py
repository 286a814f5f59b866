"""Sound inputs are accepted, and a hundred damaged ones of each reader are accepted or refused in one line."""

import os
import re
import subprocess
import sys
from itertools import count, islice

import pytest
from fuzz.__main__ import COSTLY
from fuzz.readers import readers
from fuzz.runner import made

from dipsim.basics.errors import InputError

COMMANDS = {  # that read a file, before its path
    **dict.fromkeys(("device", "recipe", "trace of activations", "trace of routing", "layout"), ("check",)),
    "experiment": ("run",),
    "config": ("recipe", "--out", "made.yaml", "--shape"),
    **{f"import of {name}": ("import", name, "--out", "made.safetensors") for name in ("colibri", "warp", "vllm")},
}
INPUTS = 100  # of each reader; `make fuzz` has two hundred times as many


@pytest.fixture(scope="module")
def each(tmp_path_factory):
    return readers(tmp_path_factory.mktemp("sound"))


def refuses(reader, data, folder):
    """Whether a reader refuses an input, which is then in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / reader.file).write_bytes(data)
    try:
        reader.read(folder / reader.file)
    except InputError:
        return True
    return False


@pytest.mark.xdist_group("fuzz")
def test_sound_inputs_are_accepted(each, tmp_path):
    cheap = [reader for reader in each if not reader.costly]  # `plot` has tests of its own
    refused = {r.name for r in cheap for data in r.damaged.sound if refuses(r, data, tmp_path / r.name)}
    assert refused == set()
    assert len(cheap) >= 15


@pytest.mark.slow
@pytest.mark.xdist_group("fuzz")
def test_damaged_inputs_are_accepted_or_refused_in_one_line(each, checkout, tmp_path):
    """By the command of `make fuzz`, whose processes have limits of memory that this one must not have."""
    command = [sys.executable, "-m", "fuzz", "--inputs", str(INPUTS), "--keep", str(tmp_path), "--jobs", "2"]
    paths = {"PYTHONPATH": str(checkout / "tests"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=checkout, env=os.environ | paths, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    found = {
        line[0]: (int(line[1]), int(line[2]))
        for line in re.findall(r"^(.+?) +(\d+) inputs, .* (\d+) refused, +0 failed", done.stdout, re.M)
    }
    assert {name: inputs for name, (inputs, _) in found.items()} == {
        reader.name: INPUTS // COSTLY if reader.costly else INPUTS for reader in each
    }
    assert all(found[reader.name][1] for reader in each if not reader.costly)


@pytest.mark.xdist_group("fuzz")
def test_the_command_line_ends_with_2_and_one_line(each, cli_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for reader in each:
        if (command := COMMANDS.get(reader.name)) is None:
            continue
        folder = tmp_path / reader.name
        inputs = (made(reader, seed) for seed in count())
        for data in islice((data for data in inputs if refuses(reader, data, folder)), 2):
            (folder / reader.file).write_bytes(data)
            status, _, complaint = cli_run(*command, folder / reader.file)
            assert status == 2, reader.name
            assert all(line.startswith("error: ") for line in complaint.splitlines()), complaint
            assert complaint.count("\n") == 1 or "check" in command, complaint
            assert len(complaint) <= 2020, complaint
