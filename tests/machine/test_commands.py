"""The three commands of a user: calibrate, run on the result, replay. On a real disk, however fast it is."""

import re
import subprocess
import sys

import pytest
import yaml

from dipsim.basics.errors import InputError
from dipsim.machine.disk import open_disk
from dipsim.timing.device import Device

pytestmark = pytest.mark.slow
SMALL = ("--size", "280 MB")


@pytest.fixture
def dipsim(checkout, tmp_path):
    """Runs a command in a folder whose file system can be read past its cache."""
    try:
        with open_disk(tmp_path / "probe", 1 << 20):
            pass
    except InputError as error:
        pytest.skip(str(error))

    def run(*arguments):
        command = [sys.executable, "-m", "dipsim", *map(str, arguments)]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(checkout)}
        )

    return run


def replayed(dipsim):
    """Predicted over measured of each policy; None where the disk changed meanwhile."""
    done = dipsim("replay", "out", "--file", "x.bin", *SMALL, "--tokens", "4")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(("dense ", "dip("))]
    assert [row[0] for row in rows] == ["dense", "dip(keep=0.75)"]
    return None if "inconclusive" in done.stdout else [float(row[5]) for row in rows]


def test_calibrate_run_replay(dipsim, tmp_path):
    done = dipsim("calibrate", "--file", "x.bin", *SMALL, "--out", "mine.yaml")
    assert done.returncode == 0, done.stderr
    assert re.match(r"mine.yaml: Flash .*B/s for reads of 4 KiB one at a time, .*; spread of passes", done.stdout)
    device = Device.load(tmp_path / "mine.yaml")
    assert device.evidence.level == "fitted"
    assert set(device.flash.read_curves) == {1, 2, 4, 8, 16, 32}
    assert device.conditions["file"].startswith("280000000 B on ")
    done = dipsim("run", "--device", "./mine.yaml", "--dram", "60 MB", "--tokens", "96", "--layout", "popularity",
                  "--policy", "dense", "--policy", "dip", "--out", "out")  # fmt: skip
    assert done.returncode == 0, done.stderr
    tries = []
    for _ in range(3):
        tries.append(replayed(dipsim))
        if tries[-1] and all(0.5 < ratio < 2 for ratio in tries[-1]):
            break
    else:
        assert not any(tries), f"{tries} of a disk that others use, too"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "out"]


def test_what_cannot_be_done_is_one_line(dipsim, tmp_path):
    (tmp_path / "small.bin").write_bytes(bytes(range(256)) * 4096)
    (tmp_path / "d.yaml").write_text(yaml.safe_dump({"name": "d"}))
    for arguments, complaint in (
        (("calibrate", "--file", "x.bin", "--size", "4"), "--size: '4' has no unit"),
        (("calibrate", "--file", "x.bin", "--size", "1 MB"), "are too few to scatter reads over"),
        (("calibrate", "--file", "x.bin", "--out", "mine.txt"), "--out mine.txt: a device must end in .yaml"),
        (
            ("calibrate", "--file", "small.bin"),
            "--size: 1.05 MB are too few to scatter reads over; give 134 MB or more",
        ),
        (("replay", "nothing", "--file", "x.bin"), "nothing: holds no run"),
    ):
        done = dipsim(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(rf"error: .*{re.escape(complaint)}.*\n", done.stderr), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.yaml", "small.bin"]
