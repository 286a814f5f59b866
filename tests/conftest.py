"""What the tests share: a tiny random trace, the command line run in this process, and the checkout."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from tiny import SHAPE, activations

os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores; before numpy or torch is imported
if not Path("/dev/nvidiactl").exists():  # kernels run in Triton's interpreter; said before anything imports Triton
    os.environ["TRITON_INTERPRET"] = "1"

from dipsim.cli import main as cli
from dipsim.cli import terminal
from dipsim.workload import Trace
from dipsim.workload.recorded import write_trace
from dipsim.workload.trace import Header

with suppress(ValueError):  # not of the main thread
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background has it ignored


@pytest.fixture
def tiny_trace(tmp_path):
    """Opens a random trace; arguments as those of `activations`, and `starts`."""

    def make(shape=SHAPE, tokens=12, seed=0, starts=(0,), name="tiny", dtype="float32"):
        path = tmp_path / f"{name}.safetensors"
        header = Header(model=shape, sequence_starts=starts)
        write_trace(path, header, activations(shape, tokens, seed), dtype=dtype)
        return Trace.open(path)

    return make


@pytest.fixture
def cli_run(capsys, monkeypatch):
    """Runs `dipsim ARGS`; returns (exit status, stdout, stderr)."""

    monkeypatch.setattr(terminal, "PERIOD_S", float("inf"))  # however slow the machine is, nothing tells of progress

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["dipsim", *map(str, args)])
        capsys.readouterr()  # what the test itself wrote before
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def checkout():
    return Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(config, items):
    """What takes long, and what shares a fixture, begins first: at the end the workers share short tests evenly.

    xdist 3.8 tells the groups of tests by names that pytest 9.2 no longer keeps where xdist puts them, so that tests
    of a group went to any worker (pytest-dev/pytest-xdist#1386).
    """
    items.sort(key=lambda item: not {"slow", "xdist_group"} & {mark.name for mark in item.iter_markers()})
    for item in items if config.getoption("loadgroup", False) else ():
        group = item.get_closest_marker("xdist_group")
        if group and hasattr(item, "_id") and "@" not in item.nodeid:
            item._id = type(item._id).parse(f"{item.nodeid}@{group.args[0]}")
