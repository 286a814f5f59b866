"""The command line: with `cli_live` the only module that prints or exits. Commands import what they need themselves."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dipsim.cli_live import commands
from dipsim.files import InputError
from dipsim.terminal import apply_settings, console, progress_bar, torch_needed

if TYPE_CHECKING:
    from dipsim.experiment import Experiment

app = typer.Typer(
    help="Predict how fast a language model runs when its weights do not fit in DRAM.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(commands)


class Kind(StrEnum):
    """What can be listed."""

    devices = "devices"
    policies = "policies"
    traces = "traces"


class Processor(StrEnum):
    """What plans a sweep."""

    cpu = "cpu"
    cuda = "cuda"


class Format(StrEnum):
    """File formats with a schema."""

    device = "device"
    experiment = "experiment"


def main() -> NoReturn:
    """Run the command line; what the user can mend is one line on stderr and exit status 2."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except InputError as error:
        _fail(str(error))
    except typer.TyperException as error:  # an unknown command or option, a missing argument
        message = error.format_message().rstrip(".").replace("Value error, ", "")
        _fail(f"{message}; see `python -m dipsim --help`")
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _fail(message: str, status: int = 2) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        import dipsim

        print(dipsim.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def run(
    experiment: Annotated[
        Path | None, typer.Argument(help="Experiment file; by default the shipped quickstart.")
    ] = None,
    trace: Annotated[str | None, typer.Option(help="Trace, by name or path.")] = None,
    device: Annotated[str | None, typer.Option(help="Device, by name or path.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Policy, by name or path; may be repeated.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Policy parameter, POLICY.PARAMETER=VALUE; may be repeated.")
    ] = None,
    dram: Annotated[str | None, typer.Option(help='DRAM for weights and KV cache, e.g. "1.5 GB".')] = None,
    eviction: Annotated[str | None, typer.Option(help="none, lru, lfu, belady or optimal.")] = None,
    timing: Annotated[str | None, typer.Option(help="serial, concurrent or pipelined.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Simulate only the first so many tokens.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; by default results/<experiment>.")] = None,
    timeline: Annotated[bool, typer.Option("--timeline", help="Also write timeline.json for ui.perfetto.dev.")] = False,
) -> None:
    """Simulate every policy of an experiment; write tables and figures, print the summary."""
    from dipsim import assets, plots, report
    from dipsim.experiment import run as run_experiment
    from dipsim.outputs import save

    path = experiment or assets.find("examples", "quickstart")
    given = {"trace": trace, "device": device, "dram": dram, "eviction": eviction, "timing": timing, "tokens": tokens}
    resolved = _resolve(path, {key: value for key, value in given.items() if value is not None}, policy, settings or [])
    folder = out or Path("results") / path.stem
    with progress_bar() as progress:
        results = run_experiment(resolved, progress, timeline)
        progress("writing tables and figures", 0, 1)
        save(resolved, results, folder, timeline)
        plots.draw(folder)
    print(report.heading(results))
    console().print(report.table(results))
    print(f"{folder}: summary.json, tokens.csv, layers.csv, spans.csv, figures as .png and .svg", end="")
    print(", timeline.json" if timeline else "")


def _resolve(path: Path, changes: dict[str, Any], policies: list[str] | None, settings: list[str]) -> Experiment:
    """The experiment of a file with what the command line changes."""
    from dipsim.experiment import Experiment
    from dipsim.files import parse

    data = Experiment.load(path).model_dump(mode="json") | changes
    if policies:
        data["policies"] = policies
    chosen = [{entry: {}} if isinstance(entry, str) else entry for entry in data["policies"]]
    apply_settings(chosen, settings)
    return parse(Experiment, data | {"policies": chosen}, "command line" if changes or policies else path)


@app.command()
def sweep(
    experiment: Annotated[Path, typer.Argument(help="Experiment file with a sweep.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    dask: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to run on (extra `dask`).")] = None,
    device: Annotated[
        Processor, typer.Option(help="What plans, not what is simulated; cuda is this machine's GPU (extra `cuda`).")
    ] = Processor.cpu,
    out: Annotated[Path | None, typer.Option(help="Output folder; by default results/<experiment>.")] = None,
) -> None:
    """Simulate a grid: every combination of the values in an experiment's sweep. Killed, it resumes by itself."""
    from dipsim import report, sweep_plots
    from dipsim.experiment import Experiment
    from dipsim.sweep_run import sweep as run_sweep

    chosen = Experiment.load(experiment)
    folder = out or Path("results") / experiment.stem
    workers = workers or len(os.sched_getaffinity(0))
    needed = torch_needed("cuda", "tokens or settings at a time") if device is Processor.cuda else nullcontext()
    with progress_bar() as progress, needed:
        table = run_sweep(chosen, folder, workers, dask, progress, experiment, device.value)
        progress("drawing figures", 0, 1)
        sweep_plots.draw(folder)
    console().print(report.sweep_table(table))
    print(f"{folder}: sweep.csv, a row for each of {len(table)} points, figures as .png and .svg")


@app.command()
def plot(folder: Annotated[Path, typer.Argument(help="Output folder of a run or a sweep.")]) -> None:
    """Draw the figures of an output folder again."""
    from dipsim import plots, sweep_plots

    draw = sweep_plots.draw if sweep_plots.is_sweep(folder) else plots.draw
    for path in draw(folder):
        print(path)


@app.command("list")
def list_(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """List what is shipped."""
    from rich.table import Table

    from dipsim import assets

    columns, describe = {
        Kind.devices: (("name", "Flash", "DRAM", "description"), _describe_device),
        Kind.policies: (("name", "parameters", "description"), _describe_policy),
        Kind.traces: (("name", "tokens", "model", "layers, hidden, intermediate"), _describe_trace),
    }[kind]
    table = Table(*columns, box=None, pad_edge=False)
    for name in assets.names(kind):
        table.add_row(name, *describe(name))
    console().print(table)


def _describe_device(name: str) -> tuple[str, ...]:
    from dipsim.device import Device
    from dipsim.units import show

    device = Device.load(name)
    memory = f"{show(device.dram.capacity, 'size')}, {show(device.dram.bandwidth, 'bandwidth')}"
    return show(device.flash.peak_bandwidth, "bandwidth"), memory, device.description


def _describe_policy(name: str) -> tuple[str, ...]:
    from dipsim.policy import policy_class

    policy = policy_class(name)
    parameters = [
        key if field.is_required() else f"{key}={field.default!r}" for key, field in policy.model_fields.items()
    ]
    return ", ".join(parameters), (policy.__doc__ or "").splitlines()[0]


def _describe_trace(name: str) -> tuple[str, ...]:
    from dipsim.trace import Trace

    trace = Trace.open(name)
    shape = trace.shape
    sizes = f"{shape.num_hidden_layers}, {shape.hidden_size}, {shape.intermediate_size}"
    return str(trace.tokens), shape.name, sizes


@app.command()
def check(file: Annotated[Path, typer.Argument(help="Device, experiment, trace or policy file.")]) -> None:
    """Check a file completely, without running anything with it."""
    from dipsim.device import Device
    from dipsim.experiment import Experiment
    from dipsim.experiment import check as check_experiment
    from dipsim.files import read_yaml
    from dipsim.policy import load_policy
    from dipsim.sweep import points
    from dipsim.trace import Trace

    if not file.is_file():
        raise InputError(f"{file}: no such file")
    if file.suffix == ".safetensors":
        trace = Trace.open(file)
        for index in range(trace.shape.num_hidden_layers):
            trace.layer(index)
        found = f"a trace of {trace.tokens} tokens, {trace.shape.num_hidden_layers} layers"
    elif file.suffix == ".py":
        found = f"a policy: {load_policy(file).label}"
    elif "policies" in (data := read_yaml(file)) or "trace" in data:
        experiment = Experiment.load(file)
        if experiment.sweep:
            found = f"a sweep of {len(points(experiment, file))} points"
        else:
            check_experiment(experiment)
            found = f"an experiment on {experiment.trace} and {experiment.device}"
    elif "model" in data:
        trace = Trace.open(file)
        trace.layer(0, 1)
        found = f"a recipe: {trace.tokens} tokens of {trace.shape.name}"
    else:
        found = f"a device: {Device.load(file).name}"
    print(f"{file}: ok, {found}")


@app.command()
def schema(of: Annotated[Format, typer.Argument(help="Which file format.")]) -> None:
    """Print the JSON schema of a file format, for editors that check YAML while you type."""
    import json

    from dipsim.device import Device
    from dipsim.experiment import Experiment

    model = Device if of is Format.device else Experiment
    print(json.dumps(model.model_json_schema(), indent=2))
