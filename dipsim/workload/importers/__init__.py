"""Importers of routing that others recorded, one format a file.

A file that defines an `Importer` is found by itself; nothing else lists it but the command's help.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from dipsim.basics.errors import InputError
from dipsim.basics.files import sha256
from dipsim.workload.importers.importer import IMPORTERS
from dipsim.workload.importers.sizes import fit_shape, open_shape
from dipsim.workload.routing import Routing
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import Header

__all__ = ["IMPORTERS", "import_trace", "open_shape"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def import_trace(
    format: str,  # noqa: A002, as the command says
    file: Path,
    *,
    shape: ModelShape | None = None,
    expert_bytes: float | None = None,
) -> tuple[Header, list[Routing]]:
    """Read a file of that format; return what `write_routing` writes: a header, and each layer's routing.

    `shape` has the sizes that the file does not tell. By default they are those of the only shipped trace with as many
    layers and experts. `expert_bytes` is the size of an expert, the same in all layers. What was assumed stands in the
    header's source, under `assumed`. Raises InputError for an unknown format, for a file that is not of it, naming the
    line, for a shape that does not fit and for sizes that nothing tells.
    """
    if format not in IMPORTERS:
        raise InputError(f"format: {format!r} is not one of {', '.join(sorted(IMPORTERS))}")
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    recording = IMPORTERS[format].read(file)
    model, columns, assumed = fit_shape(recording, file, shape, expert_bytes)
    recording = recording.picked(columns)
    recording.check(model.experts.num_experts, file)
    if recording.weights is None and recording.rising:
        assumed.append("experts stand in rising order, so which of them a token wants most is not known")
    source = {"format": format, "file": file.name, "sha256": sha256(file)}
    if recording.model:
        source["model"] = recording.model
    if assumed:
        source["assumed"] = "; ".join(assumed)
    layers = [
        Routing(
            model.experts.num_experts,
            model.experts.num_experts_per_tok,
            ids=recording.ids[:, index],
            recorded_weights=None if recording.weights is None else recording.weights[:, index],
            layer=layer,
            where=file,
        )
        for index, layer in enumerate(columns)
    ]
    return Header(model=model, prompts=recording.prompts, source=source), layers
