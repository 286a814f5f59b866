"""Reads what a run would have read from a real file, and says how right the prediction was.

Every step's reads are one batch, and the next step waits for all of it, as in the engine. Only Flash is compared: the
reads are replayed twice, and the ratio of both replays is what the machine itself adds of noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from dipsim.basics.arrays import Floats
from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.basics.files import read_yaml, write
from dipsim.basics.progress import Progress, silent
from dipsim.basics.units import show
from dipsim.machine.calibrate import FEWEST, READS, scattered
from dipsim.machine.disk import Storage
from dipsim.machine.reads import Reads, reads_of
from dipsim.results.folder import read_runs
from dipsim.study.experiment import Experiment
from dipsim.timing.device import Device
from dipsim.timing.service import service_times

PROBED = (16384, 262144)  # bytes of the reads that tell whether the disk is still as fast as before
LEAST = 2 * FEWEST * max(PROBED)  # bytes of a file that has room for them
DRIFT = 1.5  # by more than this factor, and nothing can be said
REPLAYS = 2
GOOD = 0.4  # an error up to which a device is said to be validated


@dataclass(frozen=True)
class Replayed:
    """Flash seconds of T tokens: `predicted` [T], `measured` [replays, T]. The disk changed by the factor `drift`."""

    predicted: Floats
    measured: Floats
    drift: float

    @property
    def ratio(self) -> float:
        """Predicted over measured, over all tokens."""
        return float(self.predicted.sum() / self.measured.mean(axis=0).sum())

    @property
    def ratios(self) -> Floats:
        """Predicted over measured of each token, [T]."""
        return np.asarray(self.predicted / self.measured.mean(axis=0))

    @property
    def percentiles(self) -> tuple[float, float, float]:
        """The 10th, 50th and 90th percentile of `ratios`."""
        low, middle, high = np.percentile(self.ratios, [10, 50, 90])
        return float(low), float(middle), float(high)

    @property
    def verdict(self) -> tuple[str, str, str, str]:
        """As a table says it: `ratio`, `percentiles`, `noise`, `drift`."""
        drift = f"{self.drift:.2f}" if self.conclusive else f"{self.drift:.2f}, inconclusive"
        return f"{self.ratio:.2f}", " ".join(f"{each:.2f}" for each in self.percentiles), f"{self.noise:.2f}", drift

    @property
    def noise(self) -> float:
        """One replay over the other: at least 1."""
        totals = self.measured.sum(axis=1)
        return float(totals.max() / totals.min())

    @property
    def conclusive(self) -> bool:
        """Whether the disk was as fast afterwards as before."""
        return self.drift <= DRIFT


def planned(
    folder: Path, labels: Sequence[str], tokens: int, progress: Progress = silent
) -> tuple[Device, dict[str, Reads]]:
    """The device of a run in `folder`, and what each of its policies, or those with `labels`, reads.

    Raises InputError if the folder is not that of a run, has no such policy, or has counted fewer tokens.
    """
    if not (folder / "experiment.yaml").is_file():
        raise InputError(f"{folder}: holds no run; give the output folder of `dipsim run`")
    experiment = Experiment.load(folder / "experiment.yaml")
    if experiment.sweep:
        raise InputError(f"{folder}: is a sweep, which does not keep what one setting reads; replay a run")
    trace, policies = experiment.open_trace(), {policy.label: policy for policy in experiment.load_policies()}
    if missing := [label for label in labels if label not in policies]:
        raise InputError(f"--policy {missing[0]}: is not in {folder}; it has {', '.join(policies)}")
    device = experiment.load_hardware(trace.shape)
    chosen = [policies[label] for label in labels or policies]
    length = experiment.tokens or trace.tokens
    settings = experiment.settings(chosen, trace.shape, trace.longest_sequence(experiment.tokens), device)
    page = max(int(device.flash.page), 4096)
    found = {
        policy.label: reads_of(trace, setting, length, tokens, page, progress)
        for policy, setting in zip(chosen, settings, strict=True)
    }
    for run in read_runs(folder):
        if run.policy in found and not np.isclose(
            _flash_s(found[run.policy], device).sum(), run.flash_s or 0, rtol=1e-9
        ):
            raise InputError(f"{folder}: its device, trace or policy has changed since; run it again")
    return device, found


def _flash_s(reads: Reads, device: Device) -> Floats:
    """Seconds of Flash that are predicted for each counted token, [T]."""
    service = service_times(reads.plan, device)
    return np.asarray((service.flash_static + service.flash).sum(axis=1))


def replay(reads: Reads, device: Device, storage: Storage, progress: Progress = silent) -> Replayed:
    """Read what tokens read, with the device's lanes, between two short calibrations.

    Raises InputError if the disk cannot read the device's pages.
    """
    if device.flash.page % storage.grain:
        raise InputError(
            f"flash.page: {show(device.flash.page, 'size')} is no multiple of the {storage.grain} B that this disk "
            "reads; run on a device with such pages, for example a calibrated one"
        )
    lanes = device.flash.lanes or device.flash.queue_depth
    rng = np.random.default_rng(1)
    before = _probe(storage, lanes, rng)
    measured = np.empty((REPLAYS, len(reads.batches)))
    for turn in range(REPLAYS):
        for token, batches in enumerate(reads.batches):
            measured[turn, token] = sum(storage.read(offsets, sizes, lanes) for offsets, sizes in batches)
            progress("replaying tokens", turn * len(reads.batches) + token + 1, REPLAYS * len(reads.batches))
    after = _probe(storage, lanes, rng)
    predicted = _flash_s(reads, device)[-len(reads.batches) :]
    return Replayed(predicted, measured, float(np.exp(np.abs(np.log(after / before))).max()))


def _probe(storage: Storage, lanes: int, rng: np.random.Generator) -> Floats:
    """Seconds of a read by size, the median of three batches."""

    def once(size: int) -> float:
        offsets = scattered(storage, size, READS, rng)
        return storage.read(offsets, [size] * len(offsets), lanes) / len(offsets)

    return np.array([np.median([once(size) for _ in range(3)]) for size in PROBED])


def write_replay(folder: Path, found: Mapping[str, Replayed]) -> None:
    """Write `replay.csv` into the folder of a run: a row for each policy and token."""
    rows = [
        {"policy": label, "token": token, "predicted_s": each.predicted[token]}
        | {f"measured_{turn + 1}_s": each.measured[turn, token] for turn in range(REPLAYS)}
        for label, each in found.items()
        for token in range(len(each.predicted))
    ]
    write(folder / "replay.csv", pd.DataFrame(rows).to_csv(index=False))


def check_note(path: Path, device: Device) -> None:
    """Raise InputError unless a device file is that of the run, whose error may be written into it."""
    if Device.load(path).flash != device.flash:
        raise InputError(
            f"--note {path}: its flash is not that of the run, {device.name}; run on this device, unchanged"
        )


def note(path: Path, folder: Path, found: Mapping[str, Replayed]) -> float:
    """Write the largest error of predicted over measured into a device file, and return it.

    Up to `GOOD` the device is then validated. Raises InputError if nothing could be said.
    """
    said = [abs(each.ratio - 1) for each in found.values() if each.conclusive]
    if len(said) < len(found):
        raise InputError(f"{path}: not changed, since the replay was inconclusive; repeat it while nothing else runs")
    data = read_yaml(path)
    tokens, noise = len(next(iter(found.values())).predicted), max(each.noise for each in found.values())
    against = f"a replay of {tokens} tokens of {', '.join(found)} ({folder.resolve().name}), the largest error"
    data["evidence"] = {
        "level": "validated" if max(said) <= GOOD else "fitted",
        "against": f"{against}; replays differed by up to {noise - 1:.0%}",
        "error": round(max(said), 4),
    }
    parse(Device, data, path)
    write(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    return max(said)
