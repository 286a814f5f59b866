"""The commands that look at files: what is shipped, whether a file is sound, which fields a format has."""

from __future__ import annotations

import re
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel

from dipsim.basics.errors import InputError, collected, named
from dipsim.cli.complaints import MOST, fail, located
from dipsim.cli.terminal import console, plain_table

if TYPE_CHECKING:
    from dipsim.study.experiment import Experiment

commands = typer.Typer()


class Kind(StrEnum):
    """What can be listed."""

    devices = "devices"
    policies = "policies"
    prefetchers = "prefetchers"
    traces = "traces"
    layouts = "layouts"


class Format(StrEnum):
    """File formats with a schema."""

    device = "device"
    experiment = "experiment"


@commands.command("list")
def list_(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """List what is shipped."""
    import dipsim.storage.layouts  # noqa: F401  # which fills LAYOUTS
    from dipsim.basics import assets
    from dipsim.storage.layout import LAYOUTS

    columns, describe = {
        Kind.devices: (
            ("name", "Flash: 4 KiB, 64 KiB, longest reads", "DRAM", "evidence", "description"),
            _describe_device,
        ),
        Kind.policies: (("name", "parameters", "description"), _describe_policy),
        Kind.prefetchers: (("name", "parameters", "description"), _describe_prefetcher),
        Kind.traces: (("name", "tokens", "model", "layers, hidden, intermediate or experts"), _describe_trace),
        Kind.layouts: (("name", "description"), _describe_layout),
    }[kind]
    names = (*(sorted(LAYOUTS) if kind is Kind.layouts else ()), *assets.names(kind))
    console().print(plain_table(columns, ((name, *describe(name)) for name in names)))


def _describe_device(name: str) -> tuple[str, ...]:
    from dipsim.basics.units import show
    from dipsim.timing.device import Device

    device = Device.load(name)
    memory = f"{show(device.dram.capacity, 'size')}, {show(device.dram.bandwidth, 'bandwidth')}"
    rates = [size / device.flash.read_time(size) for size in (4096, 65536)]
    flash = ", ".join(show(rate, "bandwidth") for rate in (*rates, device.flash.peak_bandwidth))
    return flash, memory, "" if device.evidence is None else device.evidence.shown, device.description


def _describe_policy(name: str) -> tuple[str, ...]:
    from dipsim.sparsity.plugins import policy_class

    return _describe_plugin(policy_class(name))


def _describe_prefetcher(name: str) -> tuple[str, ...]:
    from dipsim.sparsity.plugins import prefetcher_class

    return _describe_plugin(prefetcher_class(name))


def _describe_plugin(plugin: type[BaseModel]) -> tuple[str, ...]:
    parameters = [
        key if field.is_required() else f"{key}={field.default!r}" for key, field in plugin.model_fields.items()
    ]
    return ", ".join(parameters), " ".join((plugin.__doc__ or "").partition("\n\n")[0].split())


def _describe_trace(name: str) -> tuple[str, ...]:
    from dipsim.workload import Trace

    trace = Trace.open(name)
    shape = trace.shape
    mlp = str(shape.intermediate_size)
    if (mixture := shape.mixture) is not None:
        mlp = f"{mixture.num_experts} x {mixture.moe_intermediate_size}"
    return str(trace.tokens), shape.name, f"{shape.num_hidden_layers}, {shape.hidden_size}, {mlp}"


def _describe_layout(name: str) -> tuple[str, ...]:
    import inspect

    import dipsim.storage.layouts  # noqa: F401  # which fills LAYOUTS
    from dipsim.storage.layout import LAYOUTS

    if name not in LAYOUTS:
        return ("Learned; what it is from is told by `check` on its file in traces/.",)
    module = inspect.getmodule(LAYOUTS[name])
    return ((module.__doc__ or "").splitlines()[0] if module else "",)


@commands.command()
def check(
    file: Annotated[Path, typer.Argument(help="Device, experiment, trace, policy, prefetcher, layout or calibration.")],
    tried_on: Annotated[
        str | None, typer.Option("--trace", help="Trace that a policy is tried on; by default one of its kind.")
    ] = None,
) -> None:
    """Check a file completely and tell all that is wrong with it. Nothing is simulated; but a policy or prefetcher is
    loaded, which runs its file, and a policy is tried on a few tokens.
    """
    try:
        print(f"{file}: ok, {_check(file, tried_on)}")
    except InputError as error:
        fail(*located(*error.all[:MOST]), *error.all[MOST:])


def _check(file: Path, trace: str | None) -> str:
    """What a file is. Raises InputError with all that is wrong with it."""
    from dipsim.basics.files import check_regular, kind_of, read_yaml
    from dipsim.sparsity.calibrated import SUFFIX as CALIBRATION
    from dipsim.sparsity.calibrated import Calibrated
    from dipsim.storage.layouts import load_layout
    from dipsim.storage.learned import SUFFIX
    from dipsim.timing.device import Device
    from dipsim.workload import Trace

    check_regular(file, "a file that dipsim reads")
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    if file.name.endswith(SUFFIX):
        origin = load_layout(str(file)).origin  # type: ignore[attr-defined]
        found = f"a layout: {origin.layout} for {origin.policy} on {origin.model.name}"
    elif file.name.endswith(CALIBRATION):
        calibrated = Calibrated.read(file)
        found = f"a calibration of precision for {calibrated.origin.model.name}"
    elif file.suffix == ".safetensors":
        opened = Trace.open(file)
        for index in opened.layers:
            opened.layer(index)
        found = f"a trace of {opened.tokens} tokens, {opened.shape.num_hidden_layers} layers"
    elif file.suffix == ".py":
        found = _check_plugin(file, trace)
    elif (kind := kind_of(data := read_yaml(file))) == "an experiment":
        found = _check_experiment(file, data)
    elif kind == "a recipe":
        opened = Trace.open(file)
        opened.layer(opened.layers[0], 1)
        found = f"a recipe: {opened.tokens} tokens of {opened.shape.name}"
    else:
        found = f"a device: {Device.load(file).name}"
    return found


def _check_plugin(file: Path, trace: str | None) -> str:
    """What a plugin's file is. A policy that needs no parameters plans some tokens."""
    from dipsim.sparsity.plugins import made, plugin_class
    from dipsim.sparsity.policy import Policy
    from dipsim.study.run import check_policy

    found = plugin_class(file)
    kind = f"a {'policy' if issubclass(found, Policy) else 'prefetcher'}"
    if needed := [name for name, field in found.model_fields.items() if field.is_required()]:
        return f"{kind} that needs {', '.join(needed)}, so it was not tried"
    plugin = made(found, {}, file)
    with named(file):
        tried = f", tried on {check_policy(plugin, trace)}" if isinstance(plugin, Policy) else ""
    return f"{kind}: {plugin.label}{tried}"


def _check_experiment(file: Path, data: dict[str, Any]) -> str:
    """What an experiment file is. Where fields are wrong, the parts that sound ones name are checked nevertheless."""
    from dipsim.basics.fields import parse
    from dipsim.study.experiment import Experiment
    from dipsim.study.points import points
    from dipsim.study.run import check as check_experiment

    complaints: list[str] = []
    with collected(complaints), named(file):
        experiment = parse(Experiment, data, "")
    if not complaints:
        _announce(experiment)
        if experiment.sweep:
            return f"a sweep of {len(points(experiment, file))} points"
        with named(file):
            check_experiment(experiment)
        return f"an experiment on {experiment.trace} and {experiment.device}"
    wrong = {re.split("[.:]", line.removeprefix(f"{file}: "))[0] for line in complaints}
    sound = {name: value for name, value in data.items() if name not in wrong and name in Experiment.model_fields}
    with suppress(InputError):  # of fields that contradict each other, which is told once the others are right
        experiment = parse(Experiment, {"trace": "smollm2-135m", "policies": ["dense"]} | sound | {"sweep": {}}, "")
        _announce(experiment)
        with collected(complaints), named(file):
            experiment.load_parts()
    raise InputError(*complaints)


def _announce(experiment: Experiment) -> None:
    """Say which files are about to be loaded, but for those that are shipped."""
    from dipsim.basics import assets

    named_there = [("policies", choice.policy) for choice in experiment.policies]
    named_there += [("prefetchers", experiment.prefetch.by.prefetcher)] if experiment.prefetch else []
    shipped = {assets.directory(kind).resolve() for kind in ("policies", "prefetchers")}
    for kind, name in named_there:
        with suppress(InputError):  # which loading it tells
            if (file := assets.find(kind, name)).resolve().parent not in shipped:
                print(f"{file}: is loaded now, which runs it", flush=True)


@commands.command()
def schema(of: Annotated[Format, typer.Argument(help="Which file format.")]) -> None:
    """Print the JSON schema of a file format, for editors that check YAML while you type."""
    import json

    from dipsim.study.experiment import Experiment
    from dipsim.timing.device import Device

    model = Device if of is Format.device else Experiment
    print(json.dumps(model.model_json_schema(), indent=2))
