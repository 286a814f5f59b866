"""dipsim: how fast a language model runs when its weights do not fit in DRAM.

A trace and a policy make masks, masks and a cache make a fetch plan, a fetch plan and a device make a timeline:

    result = dipsim.simulate("smollm2-135m", {"dip": {"keep": 0.75}}, "paper", dram="60 MB", tokens=64)
    result.plot()

To simulate:
    simulate      one policy on a device, by names, paths or objects
    run           every policy of an experiment
    sweep         a grid of experiments, as a table of points
    plot          a figure of one result or of several
    hit_curve     the hits of masks in caches of many sizes

What is simulated:
    Experiment    a trace, a device, policies and options, as in an experiment file
    Trace         a model's activations or routing, token by token
    ModelShape    the sizes of a model
    Device        Flash, DRAM, compute and energy
    Result        what a run found: summary, tables, figures

To write plugins:
    Policy        which columns or experts a token reads
    Group         matrices that share one mask
    top_k         masks from scores
    Prefetcher    what is read ahead
    Known         what a prefetcher knows
    Fraction      the type of a parameter from 0 to 1
    load_policy   a policy by name or path, with its parameters

What goes wrong:
    InputError    input that cannot be used, in one line: where, what and the fix
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipsim.basics.version import __version__

if TYPE_CHECKING:
    from dipsim.basics.errors import InputError
    from dipsim.basics.fields import Fraction
    from dipsim.figures.run import plot
    from dipsim.memory.stack_distance import hit_curve
    from dipsim.results.result import Result
    from dipsim.sparsity.plugins import load_policy
    from dipsim.sparsity.policy import Group, Policy
    from dipsim.sparsity.prefetcher import Known, Prefetcher
    from dipsim.sparsity.ranking import top_k
    from dipsim.study.experiment import Experiment
    from dipsim.study.run import run, simulate
    from dipsim.study.sweep import sweep
    from dipsim.timing.device import Device
    from dipsim.workload import Trace
    from dipsim.workload.shape import ModelShape

__all__ = [
    "Device",
    "Experiment",
    "Fraction",
    "Group",
    "InputError",
    "Known",
    "ModelShape",
    "Policy",
    "Prefetcher",
    "Result",
    "Trace",
    "__version__",
    "hit_curve",
    "load_policy",
    "plot",
    "run",
    "simulate",
    "sweep",
    "top_k",
]
_HOME = {
    "Device": "timing.device",
    "Experiment": "study.experiment",
    "Fraction": "basics.fields",
    "Group": "sparsity.policy",
    "InputError": "basics.errors",
    "Known": "sparsity.prefetcher",
    "ModelShape": "workload.shape",
    "Policy": "sparsity.policy",
    "Prefetcher": "sparsity.prefetcher",
    "Result": "results.result",
    "Trace": "workload",
    "hit_curve": "memory.stack_distance",
    "load_policy": "sparsity.plugins",
    "plot": "figures.run",
    "run": "study.run",
    "simulate": "study.run",
    "sweep": "study.sweep",
    "top_k": "sparsity.ranking",
}

if not (Path(__file__).parent / "policies").is_dir():  # a checkout: the shipped files lie beside the package
    __path__.append(str(Path(__file__).resolve().parent.parent))


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `--help` answers at once."""
    if name not in _HOME:
        raise AttributeError(f"module 'dipsim' has no attribute {name!r}")
    return getattr(import_module(f"dipsim.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
