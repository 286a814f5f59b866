"""Whatever reads a file refuses a pipe and a device, which may never end, in a line that names it."""

import os
import shutil
from pathlib import Path

import pytest
import tiny_mixture

from dipsim.basics.errors import InputError
from dipsim.basics.files import read_text, read_yaml
from dipsim.figures.run import draw_run
from dipsim.figures.sweep import draw_sweep
from dipsim.figures.sweep_table import read_sweep
from dipsim.results.quality import read_quality
from dipsim.sparsity.calibrated import Calibrated
from dipsim.sparsity.plugins import load_policy
from dipsim.storage.layouts import load_layout
from dipsim.timing.device import Device
from dipsim.workload import Trace
from dipsim.workload.config import read_config
from dipsim.workload.importers import import_trace

READERS = {
    "e.yaml": read_yaml,
    "d.yaml": Device.load,
    "r.yaml": Trace.open,
    "t.safetensors": Trace.open,
    "config.json": read_config,
    "text.txt": read_text,
    "x.layout.safetensors": lambda path: load_layout(str(path)),
    "x.precision.safetensors": Calibrated.read,
    "p.py": load_policy,
    "recorded.txt": lambda path: import_trace("colibri", path, shape=tiny_mixture.SHAPE),
    "sweep.csv": read_sweep,
    "summary.json": lambda path: draw_run(path.parent),
    "w.safetensors": lambda path: load_policy("predictor", weights=str(path)).static_bytes(tiny_mixture.SHAPE),
    "s.sensitivity.safetensors": lambda path: load_policy("worth", sensitivity=str(path)).groups(tiny_mixture.SHAPE),
}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, device])
@pytest.mark.parametrize("name", READERS)
def test_a_pipe_or_a_device_is_refused(tmp_path, name, make):
    path = tmp_path / name
    make(path)
    with pytest.raises(InputError) as error:
        READERS[name](path)
    assert str(path) in str(error.value)
    assert "not a file" in str(error.value) or "no such file" in str(error.value)


@pytest.mark.parametrize("make", [pipe, device])
def test_so_is_the_table_beside_a_trace(tiny_trace, tmp_path, make):
    trace = tiny_trace()
    make(tmp_path / "tiny.quality.csv")
    with pytest.raises(InputError, match=r"tiny\.quality\.csv: is not a file"):
        read_quality(trace)
    make(tmp_path / "sweep.csv")
    with pytest.raises(InputError):  # the folder is not that of a sweep, whose table is a file
        draw_sweep(tmp_path)
    shutil.rmtree(tmp_path)
