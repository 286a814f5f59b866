"""Folders of `solve`, `plan-memory` and `compare` on a tiny trace."""

from pathlib import Path

from dipsim.results.compare import Compared, rows, write_compare
from dipsim.results.folder import runs_of
from dipsim.study.experiment import Experiment
from dipsim.study.memory import plan_memory, write_memory
from dipsim.study.question import Target
from dipsim.study.run import run
from dipsim.study.solve import solve


def write_answers(trace: Path, base: Path) -> dict[str, Path]:
    """Write them below `base`; return them by command."""
    folders = {command: base / command for command in ("solve", "plan-memory", "compare")}
    data = {"trace": str(trace), "device": "paper", "policies": ["dense", {"dip": {"keep": 0.5}}], "tokens": 4}
    experiment = Experiment.model_validate({**data, "dram": {"mlp_fraction": 0.5}})
    solve(experiment, Target.read("1000 tokens/s"), "flash.read_bandwidth", folders["solve"])
    write_memory(experiment, plan_memory(experiment), folders["plan-memory"])
    runs = {name: runs_of(run(experiment.model_copy(update={"eviction": name}))) for name in ("lfu", "lru")}
    compared = [Compared(name, each, {**data, "eviction": name}) for name, each in runs.items()]
    write_compare(rows(compared), folders["compare"])
    return folders
