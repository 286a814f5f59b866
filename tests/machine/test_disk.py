"""A real file on this machine's disk: what is read is what was written, and whatever cannot be read is refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dipsim.basics.errors import InputError
from dipsim.machine import disk as module
from dipsim.machine.disk import LARGEST, Disk, open_disk

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@pytest.fixture
def there(tmp_path):
    """A folder on a file system that can read past its cache, or the test is skipped."""
    try:
        with open_disk(tmp_path / "probe", MIB):
            return tmp_path
    except InputError as error:
        pytest.skip(str(error))


def test_reads_are_timed_and_nothing_is_left(there):
    told = []
    with open_disk(there / "x.bin", 40 * MIB, progress=lambda *what: told.append(what)) as disk:
        assert (disk.size, disk.grain % 512, bool(disk.kind)) == (40 * MIB, 0, True)
        assert list(there.iterdir()) == []
        for lanes in (1, 3, 8):
            seconds = disk.read([k * 2 * MIB for k in range(16)], [LARGEST] * 16, lanes)
            assert 0 < seconds < 100
        assert disk.read([], [], 4) == 0.0
    assert list(there.iterdir()) == []
    assert told[-1] == ("writing the file to read", 40 * MIB, 40 * MIB)


def test_every_read_is_made_once_by_as_many_threads_as_lanes(there, monkeypatch):
    import threading

    made, threads, real = [], set(), os.preadv

    def preadv(descriptor, buffers, offset):
        threads.add(threading.get_ident())
        time.sleep(0.3 if offset == 4096 * 39 else 0.01)  # the last one is the slowest
        got = real(descriptor, buffers, offset)
        made.append((offset, sum(map(len, buffers))))
        return got

    monkeypatch.setattr(os, "preadv", preadv)
    with open_disk(there / "x.bin", 4 * MIB) as disk:
        offsets = [4096 * k for k in range(3, 40)]
        seconds = disk.read(offsets, [4096] * 36 + [8192], 4)
        assert (len(made), seconds >= 0.3) == (37, True), "a batch ends with its last read"
    assert sorted(made) == [(offset, 8192 if offset == offsets[-1] else 4096) for offset in offsets]
    assert len(threads) == 4


def test_a_file_that_is_there_is_read_and_not_changed(there):
    path = there / "mine.bin"
    path.write_bytes(os.urandom(2 * MIB))
    path.chmod(0o400)
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    with open_disk(path, MIB) as disk:
        assert disk.size == 2 * MIB
        disk.read([0, MIB], [4096, LARGEST], 2)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_a_read_beyond_the_end_is_an_error_and_the_disk_stays_usable(there):
    with open_disk(there / "x.bin", 2 * MIB) as disk:
        with pytest.raises(InputError, match=r"the disk fails to read: .*the file ends before a read does"):
            disk.read([0, 4 * MIB], [4096, 4096], 2)
        assert disk.read([0], [4096], 1) > 0


@pytest.mark.parametrize(
    ("name", "size", "complaint"),
    [
        ("no/folder.bin", MIB, "there is no folder"),
        ("small.bin", 2 * MIB, r"has 1.05 MB, and 2.1 MB are needed; give a larger file, or a path"),
        ("holes.bin", MIB, "has holes, or was never written, which no disk reads"),
        ("reserved.bin", MIB, "has holes, or was never written, which no disk reads"),
        ("pipe", MIB, "is not an ordinary file"),
        ("folder", MIB, r"is not an ordinary file|cannot be opened"),
        ("huge.bin", 10**18, r"needs 1e\+09 GB, and the disk has .* free; ask for less \(--size\)"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(there, name, size, complaint):
    (there / "small.bin").write_bytes(os.urandom(MIB))
    with (there / "holes.bin").open("wb") as file:
        file.truncate(8 * MIB)
    with (there / "reserved.bin").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 8 * MIB)
    os.mkfifo(there / "pipe")
    (there / "folder").mkdir()
    before = sorted(there.iterdir())
    with pytest.raises(InputError, match=complaint) as raised, open_disk(there / name, size):
        pass
    assert "\n" not in str(raised.value)
    assert sorted(there.iterdir()) == before


def test_no_permission_is_one_line(there):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = there / "secret.bin"
    path.write_bytes(os.urandom(MIB))
    path.chmod(0)
    with pytest.raises(InputError, match="cannot be opened"), open_disk(path, MIB):
        pass


def test_a_file_system_in_dram_is_refused():
    if not Path("/dev/shm").is_dir():
        pytest.skip("no tmpfs here")
    with pytest.raises(InputError, match="lies on tmpfs, that is in DRAM"), open_disk(Path("/dev/shm/x.bin"), MIB):
        pass


def test_a_full_disk_and_a_file_system_without_direct_reads_are_one_line(there, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with (
            pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"),
            open_disk(there / "x", MIB),
        ):
            pass
    real = os.open

    def no_direct(path, flags, *mode, **more):
        if flags & os.O_DIRECT and str(path).startswith("/proc/self/fd"):
            raise OSError(22, "Invalid argument")
        return real(path, flags, *mode, **more)

    monkeypatch.setattr(os, "open", no_direct)
    with pytest.raises(InputError, match=r"cannot read past its cache \(O_DIRECT\)"), open_disk(there / "x", MIB):
        pass
    assert list(there.iterdir()) == []


def test_a_disk_that_takes_half_a_block_is_given_the_rest(there, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, block: real(descriptor, block[: max(4096, len(block) // 2)]))
    with open_disk(there / "x.bin", 3 * MIB) as disk:
        assert disk.size == 3 * MIB


def test_a_larger_file_is_made_than_is_needed_of_one_that_is_there(there):
    (there / "mine.bin").write_bytes(os.urandom(2 * MIB))
    with open_disk(there / "mine.bin", 9 * MIB, 2 * MIB) as disk:
        assert disk.size == 2 * MIB
    with open_disk(there / "x.bin", 9 * MIB, 2 * MIB) as disk:
        assert disk.size == 9 * MIB


def test_a_disk_closes_in_the_middle_of_a_batch(there, monkeypatch):
    import threading

    real, begun = os.preadv, threading.Event()

    def slow(*arguments):
        begun.set()
        time.sleep(0.02)
        return real(*arguments)

    monkeypatch.setattr(os, "preadv", slow)
    with open_disk(there / "x.bin", MIB) as disk:
        threading.Thread(target=disk.read, args=([0] * 1000, [4096] * 1000, 2), daemon=True).start()
        begun.wait()
        begin = time.perf_counter()
    assert time.perf_counter() - begin < 10, "not the 10 s and more that the batch would take"


def test_other_systems_are_told_so(monkeypatch):
    monkeypatch.setattr(module.sys, "platform", "darwin")
    with pytest.raises(InputError, match="known for Linux only"), open_disk(Path("x"), MIB):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_an_interrupted_calibration(there, kill):
    command = [sys.executable, "-m", "dipsim", "calibrate", "--file", "x.bin", "--size", "1 GB", "--out", "mine.yaml"]
    running = subprocess.Popen(
        command,
        cwd=there,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell may have had ignored
    )
    time.sleep(2.5)
    running.send_signal(kill)
    _, complaint = running.communicate(timeout=60)
    assert running.returncode != 0
    assert list(there.iterdir()) == []
    if kill == signal.SIGINT:
        assert complaint.decode().strip().splitlines()[-1:] == ["error: interrupted"]


def test_threads_end_with_the_disk(there):
    import threading

    before = threading.active_count()
    with open_disk(there / "x.bin", MIB) as disk:
        assert isinstance(disk, Disk)
        disk.read([0, 4096, 8192], [4096] * 3, 3)
        assert threading.active_count() == before + 3
    for _ in range(100):
        if threading.active_count() == before:
            break
        time.sleep(0.01)
    assert threading.active_count() == before
