"""The command line: the only module that prints or exits. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dipsim.files import InputError

if TYPE_CHECKING:
    from dipsim.experiment import Experiment

app = typer.Typer(
    help="Predict how fast a language model runs when its weights do not fit in DRAM.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Kind(StrEnum):
    """What can be listed."""

    devices = "devices"
    policies = "policies"
    traces = "traces"


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
    with _progress() as progress:
        results = run_experiment(resolved, progress, timeline)
        progress("writing tables and figures", 0, 1)
        save(resolved, results, folder, timeline)
        plots.draw(folder)
    print(report.heading(results))
    _console().print(report.table(results))
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
    _apply_settings(chosen, settings)
    return parse(Experiment, data | {"policies": chosen}, "command line" if changes or policies else path)


def _apply_settings(chosen: list[dict[str, dict[str, Any]]], settings: list[str]) -> None:
    """Put `--set POLICY.PARAMETER=VALUE` into the parameters of the policies chosen."""
    from dipsim.files import parse_yaml

    for setting in settings:
        target, equals, value = setting.partition("=")
        name, dot, parameter = target.rpartition(".")
        matching = [options for entry in chosen for key, options in entry.items() if name in (key, _stem(key))]
        if not (equals and dot and matching):
            known = ", ".join(key for entry in chosen for key in entry)
            raise InputError(f"--set {setting}: write POLICY.PARAMETER=VALUE with a policy of this run ({known})")
        for parameters in matching:
            parameters[parameter] = parse_yaml(value, f"--set {setting}")


def _stem(policy: str) -> str:
    """`mine` for ./mine.py, `dip-ca` for dip-ca."""
    return Path(policy).name.removesuffix(".py").replace("_", "-")


@app.command()
def sweep(
    experiment: Annotated[Path, typer.Argument(help="Experiment file with a sweep.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    dask: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to run on (extra `dask`).")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; by default results/<experiment>.")] = None,
) -> None:
    """Simulate a grid: every combination of the values in an experiment's sweep. Killed, it resumes by itself."""
    from dipsim import report, sweep_plots
    from dipsim.experiment import Experiment
    from dipsim.sweep_run import sweep as run_sweep

    chosen = Experiment.load(experiment)
    folder = out or Path("results") / experiment.stem
    with _progress() as progress:
        table = run_sweep(chosen, folder, workers or len(os.sched_getaffinity(0)), dask, progress, experiment)
        progress("drawing figures", 0, 1)
        sweep_plots.draw(folder)
    _console().print(report.sweep_table(table))
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
    _console().print(table)


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


@app.command("fit-recipe")
def fit_recipe(
    trace: Annotated[str, typer.Argument(help="Recorded trace, by name or path.")],
    out: Annotated[Path, typer.Option(help="The recipe to write, ending in .yaml.")],
) -> None:
    """Fit a recipe for synthetic traces to a recorded trace."""
    from dipsim.fit import fit
    from dipsim.trace import Trace

    if out.suffix != ".yaml":
        raise InputError(f"--out {out}: a recipe must end in .yaml")
    with _progress() as progress:
        recipe = fit(Trace.open(trace), lambda done, total: progress("fitting layers", done, total))
    recipe.write(out)
    print(f"{out}: {recipe.tokens} tokens of {recipe.model.name}")


@app.command()
def recipe(
    shape: Annotated[Path, typer.Option(help="The config.json of a Hugging Face model.")],
    out: Annotated[Path, typer.Option(help="The recipe to write, ending in .yaml.")],
    tokens: Annotated[int, typer.Option(help="Tokens of the trace.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the trace.")] = 0,
) -> None:
    """Write a recipe for a synthetic trace of any model's size, with the shipped statistics."""
    from dipsim.fit import from_config

    if out.suffix != ".yaml":
        raise InputError(f"--out {out}: a recipe must end in .yaml")
    made = from_config(shape, tokens, seed)
    made.write(out)
    print(f"{out}: {made.tokens} tokens of {made.model.name}")


@app.command()
def record(
    model: Annotated[str, typer.Option(help="smollm2-135m, a folder, a .gguf file or a Hugging Face id.")],
    text: Annotated[Path, typer.Option(help="UTF-8 text to run through the model.")],
    out: Annotated[Path, typer.Option(help="The trace to write, ending in .safetensors.")],
    tokens: Annotated[int, typer.Option(help="Tokens to record.")] = 256,
    sequence_length: Annotated[int | None, typer.Option(help="Cut into sequences of so many; by default one.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the trace: int8 (with scales), float16 or float32.")] = "int8",
    torch_dtype: Annotated[str, typer.Option(help="Of the model: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Record a real model's activations as a trace (extra `live`)."""
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: a trace file must end in .safetensors")
    with _live():
        from dipsim.live.record import record as record_trace
    with _progress() as progress:
        progress("loading the model", 0, 1)

        def recording(done: int, total: int) -> None:
            progress("recording layers", done, total)

        header = record_trace(model, text, out, tokens, sequence_length, dtype, torch_dtype, device, recording)
    print(f"{out}: {tokens} tokens of {header.model.name}, {out.stat().st_size / 1e6:.1f} MB")


@app.command()
def evaluate(
    experiment: Annotated[Path, typer.Argument(help="Experiment file; its sweep may list DRAM sizes and evictions.")],
    model: Annotated[str, typer.Option(help="smollm2-135m, a folder, a .gguf file or a Hugging Face id.")],
    text: Annotated[Path, typer.Option(help="UTF-8 text to measure perplexity on.")],
    sequences: Annotated[int, typer.Option(help="How many sequences of the text.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 512,
    calibration: Annotated[Path | None, typer.Option(help="Text for thresholds; by default the same.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="LoRA adapter folder, merged into the weights.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Output folder; by default results/<experiment>.")] = None,
) -> None:
    """Measure perplexity and simulated speed of every policy in the closed loop (extra `live`)."""
    from dipsim import outputs, quality, report
    from dipsim.experiment import Experiment

    chosen = Experiment.load(experiment)
    folder = out or Path("results") / experiment.stem
    with _live(), _progress() as progress:
        from dipsim.live import evaluate as live
        from dipsim.live.models import load

        progress("loading the model", 0, 1)
        loaded = load(model, dtype, device, adapter)
        ids = live.read_tokens(loaded, text, sequences, length)
        others = live.read_tokens(loaded, calibration, sequences, length) if calibration else None
        progress("loading the model", 1, 1)
        found = live.evaluate(loaded, ids, chosen, others, progress)
    rows = [live.row(result, length, text.name, loaded.shape.name) for _, result in found]
    results = [result for _, result in found]
    quality.save(rows, folder / "quality.csv")
    outputs.save_summary(results, folder)
    _console().print(report.table(results))
    print(f"{folder}: quality.csv, summary.json")


@app.command("train-predictor")
def train_predictor(
    trace: Annotated[str, typer.Argument(help="Recorded trace, by name or path.")],
    out: Annotated[Path, typer.Option(help="The networks to write, ending in .safetensors.")],
    fraction: Annotated[float, typer.Option(help="Share of the neurons that matter.")] = 0.5,
    rank: Annotated[int, typer.Option(help="Hidden size of the networks.")] = 64,
    steps: Annotated[int, typer.Option(help="Training steps of each layer.")] = 200,
) -> None:
    """Train the networks of the `predictor` policy on a trace (extra `live`)."""
    from dipsim.trace import Trace

    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: the networks' file must end in .safetensors")
    with _live(), _progress() as progress:
        from dipsim.live.predictor import train

        found = train(
            Trace.open(trace), out, fraction=fraction, rank=rank, steps=steps,
            progress=lambda done, total: progress("training layers", done, total),
        )  # fmt: skip
    print(f"{out}: finds {found:.1%} of the neurons that matter, on the trace itself")


@app.command()
def adapt(
    model: Annotated[str, typer.Option(help="smollm2-135m, a folder, a .gguf file or a Hugging Face id.")],
    text: Annotated[Path, typer.Option(help="UTF-8 text to train on; not the one to evaluate on.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    policy: Annotated[str, typer.Option(help="Policy, by name or path.")] = "dip",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Policy parameter, POLICY.PARAMETER=VALUE; may be repeated.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = 32,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 800,
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 512,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train LoRA adapters that win back what a policy costs (extra `live`)."""
    from dipsim.policy import load_policy

    chosen: list[dict[str, dict[str, Any]]] = [{policy: {}}]
    _apply_settings(chosen, settings or [])
    loaded_policy = load_policy(policy, **chosen[0][policy])
    with _live(), _progress() as progress:
        from dipsim.live import adapt as live
        from dipsim.live.evaluate import read_tokens
        from dipsim.live.models import load

        progress("loading the model", 0, 1)
        loaded = load(model, dtype, device)
        ids = read_tokens(loaded, text, None, length)
        progress("loading the model", 1, 1)
        adapted, losses = live.adapt(
            loaded, ids, loaded_policy, rank=rank, steps=steps, batch=batch, learning_rate=learning_rate,
            progress=progress,
        )  # fmt: skip
        live.save(adapted, out)
    tail = losses[-max(1, len(losses) // 20) :]
    print(f"{out}: {loaded_policy.label}, rank {rank}, {steps} steps; divergence {losses[0]:.3f} -> ", end="")
    print(f"{sum(tail) / len(tail):.3f} nats")


@contextlib.contextmanager
def _live() -> Iterator[None]:
    """Around what needs torch: say how to get it where it is missing, and what to do where memory is."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed; install dipsim with its extra `live` (see the README)"
        ) from None
    except Exception as error:
        if type(error).__name__ not in ("OutOfMemoryError", "MemoryError"):
            raise
        raise InputError("out of memory; ask for fewer or shorter sequences, or a smaller dtype") from None


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 130))


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr that vanishes at the end; yields a function (what, done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield show
