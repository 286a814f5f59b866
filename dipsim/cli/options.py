"""Options that several commands have, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dipsim.cli.complete import completion

OptionalExperiment = Annotated[Path | None, typer.Argument(help="Experiment file; by default the shipped quickstart.")]
TraceName = Annotated[
    str | None, typer.Option("--trace", help="Trace, by name or path.", autocompletion=completion("traces"))
]
DeviceName = Annotated[
    str | None, typer.Option("--device", help="Device, by name or path.", autocompletion=completion("devices"))
]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        help="Policy, by name or path, with the file's parameters if it is there; may be repeated.",
        autocompletion=completion("policies"),
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Policy parameter, POLICY.PARAMETER=VALUE; may be repeated.")
]
Dram = Annotated[str | None, typer.Option("--dram", help='DRAM for weights and KV cache, e.g. "1.5 GB".')]
Tokens = Annotated[int | None, typer.Option("--tokens", help="Simulate only the first so many tokens.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes; by default one a core.")]
