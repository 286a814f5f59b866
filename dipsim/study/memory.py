"""Plans the memory of an experiment: the best split of its DRAM over caches, simulated beside the even one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.results.folder import clear_results
from dipsim.results.result import Result
from dipsim.results.split import write_split
from dipsim.study.experiment import Experiment
from dipsim.study.run import run, write_origin


def plan_memory(experiment: Experiment, progress: Progress = silent) -> list[tuple[Result, Result]]:
    """The results of every policy that caches something, with the even split and with the best one.

    Raises InputError if the experiment cannot be used, or there is nothing to split.
    """
    even, best = (run(experiment.model_copy(update={"split": split}), progress) for split in ("even", "best"))
    pairs = [(one, other) for one, other in zip(even, best, strict=True) if other.plan.split is not None]
    if not pairs:
        raise InputError("policies: none of them chooses columns, so no DRAM is to be split; add one such as dip")
    return pairs


def write_memory(experiment: Experiment, pairs: Sequence[tuple[Result, Result]], out: Path) -> None:
    """Write the folder of `plan_memory`: its tables, the experiment as resolved, and where everything came from."""
    clear_results(out)
    write_origin(experiment, out)
    write_split(pairs, out)
