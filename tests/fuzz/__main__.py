"""`make fuzz`: every reader gets many damaged inputs, and must accept each or refuse it in one line.

An input comes of its reader's name and a seed: `python -m fuzz --reader device --first 17 --inputs 1` makes it again.
"""

import argparse
import os
import pickle
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

from fuzz.readers import Reader, readers
from fuzz.runner import feed, limited

CHUNK = 500  # inputs of a process
COSTLY = 100  # inputs of others for one of a costly reader


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--inputs", type=int, default=20_000, help="of each reader")
    asked.add_argument("--first", type=int, default=0, help="seed of the first")
    asked.add_argument("--reader", action="append", help="its name; by default all")
    asked.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    asked.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder for inputs that fail")
    chosen = asked.parse_args()
    with tempfile.TemporaryDirectory() as base:
        failed = 0
        for reader in sorted(readers(Path(base)), key=lambda reader: reader.costly):
            if chosen.reader is None or reader.name in chosen.reader:
                failed += _fuzz(reader, chosen, Path(base))
    sys.exit(1 if failed else 0)


def _fuzz(reader: Reader, chosen: argparse.Namespace, base: Path) -> int:
    begin, count = time.monotonic(), chosen.inputs // (COSTLY if reader.costly else 1) or 1
    end, size = chosen.first + count, CHUNK // (20 if reader.costly else 1)
    todo = [range(first, min(first + size, end)) for first in range(chosen.first, end, size)]
    counts: Counter[str] = Counter()
    failures: dict[str, int] = {}
    context, running = get_context("fork"), {}
    while todo or running:
        while todo and len(running) < chosen.jobs:
            folder = Path(tempfile.mkdtemp(dir=base))
            process = context.Process(target=_work, args=(reader, todo.pop(0), folder, chosen.keep))
            process.start()
            running[process] = folder
        done = [process for process in running if not process.is_alive()]
        for process in done:
            folder = running.pop(process)
            if process.exitcode:
                seed = int((folder / "seed").read_text().rpartition(" ")[2])
                counts["failed"] += 1
                failures[f"the process ended with {process.exitcode}"] = seed
            else:
                found, wrong = pickle.loads((folder / "found").read_bytes())
                counts += found
                failures = {**wrong, **failures}
        time.sleep(0.02)
    took = time.monotonic() - begin
    print(
        f"{reader.name:22} {counts.total():7} inputs, {counts['accepted']:6} accepted, {counts['refused']:6} refused, "
        f"{counts['failed']:4} failed; {took:.0f} s",
        flush=True,
    )
    for what, seed in failures.items():
        print(f"  seed {seed}: {what}", flush=True)
    return counts["failed"]


def _work(reader: Reader, seeds: range, folder: Path, kept: Path) -> None:
    with limited():
        found = feed(reader, seeds, folder, kept)
    (folder / "found").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main()
