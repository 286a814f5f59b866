"""The command that makes a trace of routing that another program recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dipsim.basics.errors import InputError
from dipsim.cli.terminal import must_end

commands = typer.Typer()


@commands.command("import")
def import_(
    format: Annotated[str, typer.Argument(help="bigmoeonedge, colibri, vllm or warp.")],  # noqa: A002, the user's word
    file: Annotated[Path, typer.Argument(help="The file that was recorded.")],
    out: Annotated[Path, typer.Option(help="The trace to write, ending in .safetensors; it names the model.")],
    shape: Annotated[
        str | None, typer.Option(help="A config.json, or a trace by name or path: sizes that the file does not tell.")
    ] = None,
    expert_bytes: Annotated[
        str | None, typer.Option(help='Of one expert, the same in all layers, e.g. "3.2 MB".')
    ] = None,
    source: Annotated[str | None, typer.Option(help="Where the file is from; a note that the trace keeps.")] = None,
) -> None:
    """Import which experts a mixture used, as another program recorded it."""
    from dipsim.basics.units import parse, show
    from dipsim.workload.importers import import_trace, open_shape
    from dipsim.workload.recorded import write_routing

    must_end(out, ".safetensors", "a trace file")
    try:
        size = None if expert_bytes is None else parse(expert_bytes, "size")
    except ValueError as error:
        raise InputError(f"--expert-bytes: {error}") from None
    header, layers = import_trace(format, file, shape=open_shape(shape) if shape else None, expert_bytes=size)
    model = header.model.model_copy(update={"name": out.stem})
    notes = header.source | ({"from": source} if source else {})
    write_routing(out, header.model_copy(update={"model": model, "source": notes}), layers)
    prompt = sum(end - begin for begin, end in header.prompts)
    assumed = f"; assumed: {notes['assumed']}" if "assumed" in notes else ""
    print(
        f"{out}: {len(layers[0].routed)} tokens, {prompt} of them prompt, {len(layers)} layers with "
        f"{model.experts.num_experts} experts, {model.experts.num_experts_per_tok} a token, "
        f"{show(model.experts.num_experts * model.expert_bytes.sum(), 'size')} of experts; "
        f"{show(out.stat().st_size, 'size')}{assumed}"
    )
