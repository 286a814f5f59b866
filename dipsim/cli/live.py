"""The commands that make inputs and measure models: recipes, traces, perplexities, adapters, predictors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dipsim.basics.errors import InputError, named
from dipsim.basics.progress import Progress
from dipsim.cli.complete import completion
from dipsim.cli.options import Settings
from dipsim.cli.terminal import apply_settings, console, must_end, progress_bar, torch_needed

if TYPE_CHECKING:
    from torch import Tensor

    from dipsim.live.models import LoadedModel

commands = typer.Typer()


@commands.command("fit-recipe")
def fit_recipe(
    trace: Annotated[str, typer.Argument(help="Recorded trace, by name or path.", autocompletion=completion("traces"))],
    out: Annotated[Path, typer.Option(help="The recipe to write, ending in .yaml.")],
) -> None:
    """Fit a recipe for synthetic traces to a recorded trace."""
    from dipsim.workload import Trace
    from dipsim.workload.fit import fit

    must_end(out, ".yaml", "a recipe")
    with progress_bar() as progress:
        recipe = fit(Trace.open(trace), progress)
    recipe.write(out)
    print(f"{out}: {recipe.tokens} tokens of {recipe.model.name}")


@commands.command("learn-layout")
def learn_layout(
    trace: Annotated[
        str, typer.Argument(help="Trace to learn from, by name or path.", autocompletion=completion("traces"))
    ],
    out: Annotated[Path, typer.Option(help="The layout to write, ending in .layout.safetensors.")],
    layout: Annotated[str, typer.Option(help="popularity, hot-apart or coactivation.")] = "coactivation",
    policy: Annotated[
        str,
        typer.Option(help="Policy whose columns are laid out, by name or path.", autocompletion=completion("policies")),
    ] = "dip",
    settings: Settings = None,
    device: Annotated[
        str | None,
        typer.Option(help="What columns will be read from, by name or path.", autocompletion=completion("devices")),
    ] = None,
    scale_to: Annotated[
        str | None,
        typer.Option(help="Scale the device's reads to this trace's columns.", autocompletion=completion("traces")),
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Learn from the first so many; by default half.")] = None,
    pinned: Annotated[float, typer.Option(help="Share of the MLP that DRAM will hold.")] = 0.5,
) -> None:
    """Learn what to pin and in which order columns should lie in Flash; tell the reads on the tokens left."""
    from dipsim.basics.units import show
    from dipsim.planning.learn import learn_layout as learn
    from dipsim.sparsity.plugins import load_policy
    from dipsim.storage.learned import SUFFIX
    from dipsim.study.experiment import load_device
    from dipsim.workload import Trace

    must_end(out, SUFFIX, "a layout")
    chosen: list[dict[str, dict[str, Any]]] = [{policy: {}}]
    apply_settings(chosen, settings or [])
    shown = Trace.open(trace)
    if shown.shape.mixture is not None:
        raise InputError(f"{trace}: is of a mixture of experts, which are read whole; learn-layout orders columns")
    flash = None if device is None else load_device(device, shown.shape, scale_to=scale_to).flash
    with progress_bar() as progress:
        told = learn(
            shown, load_policy(policy, **chosen[0][policy]), layout, out, flash=flash, tokens=tokens, pinned=pinned,
            progress=progress,
        )  # fmt: skip
    print(
        f"{out}: {told.reads:,.0f} reads and {show(told.read_bytes, 'size')} a token; with equal shares pinned and the "
        f"rest by index {told.plain_reads:,.0f} and {show(told.plain_read_bytes, 'size')}; on {told.tokens} tokens "
        "that it was not learned from"
    )


@commands.command()
def recipe(
    shape: Annotated[Path, typer.Option(help="The config.json of a Hugging Face model.")],
    out: Annotated[Path, typer.Option(help="The recipe to write, ending in .yaml.")],
    tokens: Annotated[int, typer.Option(help="Tokens of the trace.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the trace.")] = 0,
) -> None:
    """Write a recipe for a synthetic trace of any model's size, with the shipped statistics."""
    from dipsim.workload.fit import from_config

    must_end(out, ".yaml", "a recipe")
    made = from_config(shape, tokens, seed)
    made.write(out)
    print(f"{out}: {made.tokens} tokens of {made.model.name}")


@commands.command("text")
def plain_text(
    raw: Annotated[Path, typer.Argument(help="test.txt or valid.txt of WikiText-2, tokenised, with <unk>.")],
    out: Annotated[Path, typer.Option(help="The text to write.")],
) -> None:
    """Make the text that the shipped perplexities were measured on from WikiText-2 as it is published."""
    from dipsim.basics.files import read_text, sha256, write
    from dipsim.workload.wikitext import MEASURED, plain

    text = plain(read_text(raw))
    if not text:
        raise InputError(f"{raw}: is no split of WikiText-2 with a space around each token; see docs/how-to/text.md")
    write(out, text)
    split = MEASURED.get(sha256(out))
    print(f"{out}: {text.count(chr(10))} paragraphs" + (f", the {split} split as it was measured" if split else ""))
    if split is None:
        print(
            f"warning: {out}: is not the text of the shipped figures, nor the one they were learned from; a perplexity "
            "of it does not compare with theirs",
            file=sys.stderr,
        )


@commands.command()
def record(
    model: Annotated[str, typer.Option(help="smollm2-135m, a folder, a .gguf file or a Hugging Face id.")],
    text: Annotated[Path, typer.Option(help="UTF-8 text to run through the model.")],
    out: Annotated[Path, typer.Option(help="The trace to write, ending in .safetensors.")],
    tokens: Annotated[int, typer.Option(help="Tokens to record.")] = 256,
    sequence_length: Annotated[int | None, typer.Option(help="Cut into sequences of so many; by default one.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the trace: int8 (with scales, the default), float16 or float32.")
    ] = None,
    torch_dtype: Annotated[str, typer.Option(help="Of the model: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    next_layer: Annotated[
        bool, typer.Option("--next-layer", help="Also record what the next layer makes of each layer's input.")
    ] = False,
    experiment: Annotated[
        Path | None, typer.Option(help="Record instead which levels of precision its only such policy requests.")
    ] = None,
) -> None:
    """Record a real model's activations, or the routing of its experts, as a trace (extra `live`)."""
    must_end(out, ".safetensors", "a trace file")
    if experiment is not None:
        _record_requests(model, text, out, tokens, sequence_length or tokens, torch_dtype, device, experiment)
        return
    with torch_needed():
        from dipsim.live.record import record as record_trace
    with progress_bar() as progress:
        progress("loading the model", 0, 1)
        header = record_trace(
            model,
            text,
            out,
            tokens=tokens,
            sequence_length=sequence_length,
            dtype=dtype,
            torch_dtype=torch_dtype,
            device=device,
            next_layer=next_layer,
            progress=progress,
        )
    print(f"{out}: {tokens} tokens of {header.model.name}, {out.stat().st_size / 1e6:.1f} MB")


def _record_requests(
    model: str, text: Path, out: Path, tokens: int, length: int, dtype: str, device: str, experiment: Path
) -> None:
    """Record the requests of an experiment's policy."""
    from dipsim.study.experiment import Experiment

    if tokens % length:
        raise InputError(f"--tokens {tokens}: must be a multiple of the sequences' {length}; change one of them")
    chosen = Experiment.load(experiment)
    with torch_needed(), progress_bar() as progress:
        from dipsim.live.requests import record_requests

        loaded, ids = _load(progress, model, dtype, device, text, tokens // length, length)
        with named(experiment):
            header = record_requests(loaded, ids, text, chosen, out)
    print(f"{out}: {tokens} tokens of {header.model.name}, requests of {header.source['policy']}")


@commands.command()
def evaluate(
    experiment: Annotated[Path, typer.Argument(help="Experiment file; its sweep may list DRAM sizes and evictions.")],
    text: Annotated[Path, typer.Option(help="UTF-8 text to measure perplexity on.")],
    model: Annotated[str, typer.Option(help="smollm2-135m, a folder, a .gguf file or a hub id.")] = "smollm2-135m",
    sequences: Annotated[int, typer.Option(help="How many sequences of the text.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 512,
    calibration: Annotated[Path | None, typer.Option(help="Text for thresholds; by default the same.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="LoRA adapter folder; merged, also for dense.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Output folder; by default results/<experiment>-evaluation.")] = None,
) -> None:
    """Measure perplexity and simulated speed of every policy in the closed loop (extra `live`)."""
    from dataclasses import asdict

    import pandas as pd

    from dipsim.figures.pareto import draw_pareto, speedups
    from dipsim.results.folder import write_summary
    from dipsim.results.quality import write_quality
    from dipsim.results.tables import budget_table, run_table
    from dipsim.study.experiment import Experiment

    chosen = Experiment.load(experiment)
    folder = out or Path("results") / f"{experiment.stem}-evaluation"
    with torch_needed(), progress_bar() as progress:
        from dipsim.live import evaluate as live
        from dipsim.live.models import load
        from dipsim.live.text import read_tokens

        progress("loading the model", 0, 1)
        loaded = load(model, dtype, device, adapter)
        ids = read_tokens(loaded, text, sequences, length)
        others = read_tokens(loaded, calibration, sequences, length) if calibration else None
        progress("loading the model", 1, 1)
        with named(experiment):
            found = live.evaluate(loaded, ids, chosen, others, progress)
    merged = adapter.resolve().name if adapter else ""
    rows = [live.row(result, length, text.name, loaded.shape.name, merged) for _, result in found]
    results = [result for _, result in found]
    write_quality(rows, folder / "quality.csv")
    write_summary(results, folder)
    console().print(run_table(results))
    measured = pd.DataFrame([asdict(row) for row in rows])
    baseline = "experts" if loaded.routers else "dense"
    written = ["quality.csv", "summary.json"]
    if len(measured) > 1 and baseline in set(measured["policy"]):
        print(f"Best speed-up over {baseline} at the same DRAM, by perplexity budget:")
        console().print(budget_table(speedups(measured, baseline)))
        written += [path.name for path in draw_pareto(measured, folder, baseline)]
    print(f"{folder}: {', '.join(written)}")


@commands.command("learn-sensitivity")
def learn_sensitivity(
    model: Annotated[str, typer.Option(help="smollm2-135m, a folder, a .gguf file or a Hugging Face id.")],
    text: Annotated[Path, typer.Option(help="UTF-8 text to learn from; not the one to evaluate on.")],
    out: Annotated[Path, typer.Option(help="The file to write, ending in .safetensors.")],
    sequences: Annotated[int, typer.Option(help="How many sequences of the text.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 512,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Learn how much a model's loss depends on each column, for the `worth` policy (extra `live`)."""
    must_end(out, ".safetensors", "the file")
    with torch_needed(), progress_bar() as progress:
        from dipsim.live.sensitivity import learn_sensitivity as learn

        learn(*_load(progress, model, "float32", device, text, sequences, length), out, progress)
    print(f"{out}: from {sequences} x {length} tokens")


@commands.command("calibrate-precision")
def calibrate_precision(
    model: Annotated[str, typer.Option(help="smollm2-135m, or a .gguf file in Q4_0 or Q4_1.")],
    text: Annotated[Path, typer.Option(help="UTF-8 text to calibrate on; not the one to evaluate on.")],
    out: Annotated[Path, typer.Option(help="The file to write, ending in .precision.safetensors.")],
    sequences: Annotated[int, typer.Option(help="How many sequences of the text.")] = 64,
    length: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 512,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Calibrate levels of precision nested in a model's own 4-bit code, for the `precision` policy (extra `live`)."""
    from dipsim.sparsity.calibrated import SUFFIX

    must_end(out, SUFFIX, "the file")
    with torch_needed(), progress_bar() as progress:
        from dipsim.live.calibrate_precision import calibrate_precision as calibrate

        loaded, ids = _load(progress, model, "float32", device, text, sequences, length)
        found = calibrate(loaded, ids, text, out, progress)
    print(f"{out}: from {sequences} x {length} tokens, {out.stat().st_size / 1e6:.1f} MB;", end=" ")
    print(f"tables take {found.table_bytes / 1e3:.1f} kB of DRAM, and an error a byte for each level not resident")


@commands.command("train-predictor")
def train_predictor(
    trace: Annotated[str, typer.Argument(help="Recorded trace, by name or path.", autocompletion=completion("traces"))],
    out: Annotated[Path, typer.Option(help="The networks to write, ending in .safetensors.")],
    fraction: Annotated[float, typer.Option(help="Share of the neurons that matter.")] = 0.5,
    rank: Annotated[int, typer.Option(help="Hidden size of the networks.")] = 64,
    steps: Annotated[int, typer.Option(help="Training steps of each layer.")] = 200,
) -> None:
    """Train the networks of the `predictor` policy on a trace (extra `live`)."""
    from dipsim.workload import Trace

    must_end(out, ".safetensors", "the networks' file")
    with torch_needed(), progress_bar() as progress:
        from dipsim.live.train_predictor import train_predictor as train

        found = train(
            Trace.open(trace), out, fraction=fraction, rank=rank, steps=steps,
            progress=progress,
        )  # fmt: skip
    print(f"{out}: finds {found:.1%} of the neurons that matter, on the trace itself")


@commands.command()
def adapt(
    model: Annotated[str, typer.Option(help="smollm2-135m, a folder, a .gguf file or a Hugging Face id.")],
    text: Annotated[Path, typer.Option(help="UTF-8 text to train on; not the one to evaluate on.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    policy: Annotated[
        str, typer.Option(help="Policy, by name or path.", autocompletion=completion("policies"))
    ] = "dip",
    settings: Settings = None,
    rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = 32,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 800,
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 512,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train LoRA adapters that win back what a policy costs (extra `live`)."""
    from dipsim.sparsity.plugins import load_policy

    chosen: list[dict[str, dict[str, Any]]] = [{policy: {}}]
    apply_settings(chosen, settings or [])
    loaded_policy = load_policy(policy, **chosen[0][policy])
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    with torch_needed(), progress_bar() as progress:
        from dipsim.live import adapt as live

        loaded, ids = _load(progress, model, dtype, device, text, None, length)
        adapted, losses = live.adapt(
            loaded, ids, loaded_policy, rank=rank, steps=steps, batch=batch, learning_rate=learning_rate,
            progress=progress,
        )  # fmt: skip
        live.write_adapter(adapted, out)
    print(f"{out}: {loaded_policy.label}, rank {rank}, {steps} steps; divergence {_divergence(losses)}")


@commands.command("adapt-precision")
def adapt_precision(
    experiment: Annotated[Path, typer.Argument(help="Experiment file with one `precision` policy and one DRAM size.")],
    model: Annotated[str, typer.Option(help="smollm2-135m, or a .gguf file in Q4_0 or Q4_1.")],
    text: Annotated[Path, typer.Option(help="UTF-8 text to train on; not the one to evaluate on.")],
    out: Annotated[Path, typer.Option(help="The file to write, ending in .precision.safetensors.")],
    rank: Annotated[int, typer.Option(help="Rank of what is added to each matrix.")] = 4,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 200,
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 512,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train what is added to nested weights, to win back what `precision` costs (extra `live`)."""
    from dipsim.sparsity.calibrated import SUFFIX
    from dipsim.study.experiment import Experiment

    must_end(out, SUFFIX, "the file")
    wanted = Experiment.load(experiment)
    with torch_needed(), progress_bar() as progress:
        from dipsim.live.adapt import Training
        from dipsim.live.adapt_precision import adapt_precision as train

        how = Training(steps, batch, learning_rate)
        loaded, ids = _load(progress, model, "float32", device, text, None, length)
        with named(experiment):
            losses = train(loaded, ids, text, wanted, out, rank=rank, how=how, progress=progress)
    print(f"{out}: rank {rank}, {steps} steps; divergence {_divergence(losses)}")


def _divergence(losses: list[float]) -> str:
    """The first loss, and the mean of the last twentieth."""
    tail = losses[-max(1, len(losses) // 20) :]
    return f"{losses[0]:.3f} -> {sum(tail) / len(tail):.3f} nats"


def _load(
    progress: Progress, model: str, dtype: str, device: str, text: Path, sequences: int | None, length: int
) -> tuple[LoadedModel, Tensor]:
    """A model and the tokens of a text for it, [sequences, length]."""
    from dipsim.live.models import load
    from dipsim.live.text import read_tokens

    progress("loading the model", 0, 1)
    loaded = load(model, dtype, device)
    ids = read_tokens(loaded, text, sequences, length)
    progress("loading the model", 1, 1)
    return loaded, ids
