"""BigMoeOnEdge's route trace (`--route-trace`): a CSV with a row an expert, below lines that describe the model.

A step is a token's position. Those of phase 0 were encoded together (prefill), those of phase 1 one by one. Dense
layers have no rows, nor has the last layer for tokens of a prompt but its last. A turn goes on where the one before
ended, and the cache persists. Slots are by falling weight, and weights that the engine did not see are nan. Columns are
known by name; those that dipsim does not need are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from dipsim.basics.errors import InputError
from dipsim.workload.importers.batches import Batch, Cell, gather
from dipsim.workload.importers.importer import Importer, Recording, real, whole, whole_lines_of
from dipsim.workload.routing import NOT_ROUTED

COLUMNS = ("turn", "phase", "step", "layer", "slot", "expert")  # and perhaps weight
_MODEL = re.compile(r"# model=(.*) arch=(\S*) n_layer=(\d{1,9}) n_expert=(\d{1,9}) n_expert_used=(\d{1,9})")
_LAYER = re.compile(r"# layer=(\d{1,9}) expert_bytes=(\d{1,18}) dense_bytes=(\d{1,18})")
_FUSED = ("gemma4",)  # whose gate and up are one tensor


class BigMoeOnEdge(Importer):
    """The CSV of `--route-trace`, of a GGUF file's experts."""

    @staticmethod
    def read(file: Path) -> Recording:
        """Read a route trace. Raises InputError, naming the line, if it is none."""
        lines = whole_lines_of(file)
        header = _Header(file, [line for line in lines if line.startswith("#")])
        batches = list(_batches(file, lines, header))
        if not batches:
            raise InputError(f"{file}: has no rows below its header; record it again")
        fields = gather(file, batches, spared=True)
        if np.isnan(fields["weights"][fields["ids"] != NOT_ROUTED]).all():
            fields["weights"] = None
        return Recording(
            model=PureWindowsPath(header.model).name,  # which splits at both kinds of slash
            num_layers=header.layers,
            num_experts=header.experts,
            expert_bytes=tuple(header.bytes[layer][0] for layer in range(header.layers)),
            dense_bytes=tuple(header.bytes[layer][1] for layer in range(header.layers)),
            expert_tensors=2 if header.arch in _FUSED else 3,
            **fields,
        )


class _Header:
    """What the lines that begin with # say. Raises InputError if they do not say the sizes of the model."""

    def __init__(self, file: Path, lines: list[str]) -> None:
        found = next((match for line in lines if (match := _MODEL.fullmatch(line))), None)
        if found is None:
            raise InputError(
                f"{file}: has no line `# model=... arch=... n_layer=... n_expert=... n_expert_used=...`; "
                "a route trace of BigMoeOnEdge is expected"
            )
        self.model, self.arch = found[1], found[2]
        self.layers, self.experts, self.k = (int(found[group]) for group in (3, 4, 5))
        sizes = [match for line in lines if (match := _LAYER.fullmatch(line))]
        self.bytes = {int(size[1]): (int(size[2]), int(size[3])) for size in sizes}  # of one expert, of all else
        if not self.layers or not self.k:
            raise InputError(f"{file}: n_layer and n_expert_used must be 1 or more; record it again")
        if self.bytes and max(self.bytes) >= self.layers:
            raise InputError(f"{file}: # layer={max(self.bytes)}: layers are 0 to {self.layers - 1}; record it again")
        if len(self.bytes) < self.layers:
            missing = next(layer for layer in range(self.layers) if layer not in self.bytes)
            raise InputError(
                f"{file}: layer {missing}: missing expert bytes; the header needs a line "
                f"`# layer={missing} expert_bytes=... dense_bytes=...`"
            )


def _batches(file: Path, lines: list[str], header: _Header) -> Iterator[Batch]:
    """The tokens that were encoded together, from rows in the file's order."""
    before: dict[str, int] = {}
    cells: list[Cell] = []
    for place, cell in _cells(file, lines, header):
        together = ("turn", "phase", "step") if place["phase"] else ("turn", "phase")
        same = before and all(place[name] == before[name] for name in together)
        if before and not (same and cell.layer >= cells[-1].layer):
            yield Batch(before["phase"] == 0, cells)
            last = max(done.token for done in cells)
            if place["turn"] < before["turn"]:
                raise InputError(
                    f"{file}: line {cell.lines[0]}: turn {place['turn']} after {before['turn']}; record it again"
                )
            if place["turn"] == before["turn"] and cell.token != last + 1:
                raise InputError(
                    f"{file}: line {cell.lines[0]}: step {cell.token} where {last + 1} is expected; record it again"
                )
            cells = []
        cells.append(cell)
        before = place
    if cells:
        yield Batch(before["phase"] == 0, cells)


def _cells(file: Path, lines: list[str], header: _Header) -> Iterator[tuple[dict[str, int], Cell]]:
    """The experts of each token in each layer, and the fields that say which token and layer it is."""
    cell: Cell | None = None
    place: dict[str, int] = {}
    for row in _rows(file, lines, header):
        key = {name: row[name] for name in ("turn", "phase", "step", "layer")}
        if cell is None or key != place or len(cell.ids) == header.k:
            if cell is not None:
                yield place, _complete(file, cell, header)
            cell, place = Cell([], row["layer"], row["step"], [], []), key
        if row["slot"] != len(cell.ids):
            raise InputError(
                f"{file}: line {row['line']}: slot {row['slot']} where {len(cell.ids)} is expected; slots are 0 to "
                f"{header.k - 1}, so record it again"
            )
        cell.lines.append(row["line"])
        cell.ids.append(row["expert"])
        cell.weights.append(row["weight"])
    if cell is not None:
        yield place, _complete(file, cell, header)


def _complete(file: Path, cell: Cell, header: _Header) -> Cell:
    if len(cell.ids) != header.k:
        raise InputError(
            f"{file}: line {cell.lines[-1]}: layer {cell.layer} of step {cell.token} has {len(cell.ids)} of {header.k} "
            "slots; record it again"
        )
    return cell


def _rows(file: Path, lines: list[str], header: _Header) -> Iterator[dict[str, Any]]:
    """The rows as numbers, with the line of each, checked one by one."""
    names: list[str] | None = None
    for number, line in enumerate(lines, start=1):
        if line.startswith("#"):
            continue
        where, fields = f"{file}: line {number}", line.split(",")
        if names is None:
            names = fields
            if missing := [name for name in COLUMNS if name not in names]:
                raise InputError(f"{where}: column {missing[0]} is missing; {', '.join(COLUMNS)} are needed")
            continue
        if len(fields) != len(names):
            raise InputError(f"{where}: has {len(fields)} of {len(names)} fields; the file is truncated, copy it again")
        given = dict(zip(names, fields, strict=True))
        row: dict[str, Any] = {name: whole(given[name], name, where) for name in COLUMNS}
        row |= {"line": number, "weight": real(given.get("weight", "nan"), "weight", where)}
        if row["layer"] >= header.layers:
            raise InputError(f"{where}: layer {row['layer']}: layers are 0 to {header.layers - 1}; record it again")
        if row["phase"] > 1:
            raise InputError(f"{where}: phase {row['phase']}: must be 0 (prefill) or 1 (decode); record it again")
        yield row
