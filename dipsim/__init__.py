"""dipsim: how fast a language model runs when its weights do not fit in DRAM.

A trace and a policy make masks, masks and a cache make a fetch plan, a fetch plan and a device make a timeline.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dipsim.device import Device
    from dipsim.experiment import simulate
    from dipsim.files import InputError
    from dipsim.model import ModelShape
    from dipsim.policy import Group, Policy, load_policy, top_k
    from dipsim.result import Result
    from dipsim.trace import Trace

_HOME = {
    "Device": "device",
    "Group": "policy",
    "InputError": "files",
    "ModelShape": "model",
    "Policy": "policy",
    "Result": "result",
    "Trace": "trace",
    "load_policy": "policy",
    "simulate": "experiment",
    "top_k": "policy",
}
__all__ = [
    "Device",
    "Group",
    "InputError",
    "ModelShape",
    "Policy",
    "Result",
    "Trace",
    "load_policy",
    "simulate",
    "top_k",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `--help` answers at once."""
    if name not in _HOME:
        raise AttributeError(f"module 'dipsim' has no attribute {name!r}")
    return getattr(import_module(f"dipsim.{_HOME[name]}"), name)
