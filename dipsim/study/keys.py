"""Keys: a hash of all that a point's figures depend on.

These are the contents of trace, policy file and device, the options, and dipsim itself. So a kept result is used again
exactly as long as nothing behind it changed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dipsim.basics.assets import is_path
from dipsim.basics.files import is_file, sha256
from dipsim.basics.version import __version__
from dipsim.planning.fetch_plan import Setting
from dipsim.sparsity.plugins import sources
from dipsim.sparsity.policy import Policy
from dipsim.sparsity.prefetcher import Prefetcher
from dipsim.storage.learned import learned_file
from dipsim.study.clock_options import ClockOptions
from dipsim.timing.device import Device
from dipsim.workload.trace import Trace

NO_CLOCK = ClockOptions()
# packages that a point's figures do not come from; a test checks it
NO_FIGURES = ("cli", "figures", "live", "machine", "report")


def trace_hash(trace: Trace) -> str:
    """The hash of a trace's contents, and of the recipe that it is like."""
    return digest([sha256(trace.path), trace.header.source.get("like_sha256")])


def plan_key(of_trace: str, tokens: int, setting: Setting) -> str:
    """The key of a plan, from the hash of its trace, its number of tokens and its setting."""
    policy, file = setting.policy, learned_file(setting.layout)
    contents: dict[str, Any] = {"flash": setting.flash and setting.flash.model_dump()}
    contents["bits"] = setting.bits and setting.bits.model_dump()
    if file is not None:  # what files hold, wherever they lie
        contents["layout"] = sha256(file)
    if setting.calibration is not None:
        contents["calibration"] = trace_hash(Trace.open(setting.calibration))
    options = setting.options | contents
    parameters = _contents(policy.model_dump())
    return digest([code_hash(), of_trace, tokens, policy.name, policy_hash(policy), parameters, options])


def point_key(of_plan: str, device: Device, timing: str, clock: ClockOptions = NO_CLOCK) -> str:
    """The key of a point, from that of its plan, its device, its timing, and what depends on the clock."""
    parts = [of_plan, device.model_dump(exclude={"description", "evidence", "conditions", "sources"}), timing]
    if clock.on_clock:
        options = clock.clock_options.model_dump()
        if clock.prefetch is not None:  # by what its file holds, wherever it lies
            by = clock.prefetch.by
            options["prefetch"]["by"] = _plugin_hash(by.load(), Prefetcher), _contents(by.parameters)
        parts.append(options)
    return digest(parts)


def _contents(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters, of which those that are paths of files stand by what these hold, wherever they lie.

    A bare word may be more than the file that has its name, so it stands there too.
    """
    files = {name: value for name, value in parameters.items() if isinstance(value, str) and is_file(value)}
    return parameters | {
        name: sha256(Path(value)) if is_path(None, value) else [value, sha256(Path(value))]
        for name, value in files.items()
    }


def policy_hash(policy: Policy) -> str:
    """The hash of the policy's file, of the plugins that it builds on, and of the files that they read."""
    return _plugin_hash(policy, Policy, policy.files())


def _plugin_hash(plugin: object, base: type, files: Sequence[Path] = ()) -> str:
    """The hash of a plugin's file, of those that it builds on or imports from its folder, and of others."""
    plugins = [cls for cls in type(plugin).__mro__ if issubclass(cls, base) and cls is not base]
    behind = [file for cls in plugins for file in sources(Path(inspect.getfile(cls)))]
    return digest([sha256(file) for file in (*behind, *files)])


@cache
def code_hash() -> str:
    """dipsim's version, and the hash of those of its modules that figures come from."""
    package = Path(__file__).resolve().parent.parent
    packages = [path for path in package.iterdir() if path.is_dir() and path.name not in NO_FIGURES]
    modules = sorted(module for path in packages for module in path.rglob("*.py"))
    return digest([__version__, *(sha256(path) for path in modules)])


def digest(value: Any) -> str:
    """Hexadecimal SHA-256 of a value that JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
