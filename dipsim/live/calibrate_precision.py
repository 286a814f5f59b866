"""Calibrates the precision of a model's MLPs: the base of its nested code, and what choosing among levels goes by.

A pass over calibration text gives moments (`moments.py`), and another one typical scores. From the moments come the
bases that are nearest to the exact weights where it matters, and the errors of all levels. The formulas are in
docs/background/precision.md.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipsim.basics.arrays import Float32s
from dipsim.basics.errors import InputError
from dipsim.basics.files import sha256
from dipsim.basics.progress import Progress, silent
from dipsim.live.closed_loop import LiveActivations, replaced
from dipsim.live.codes import MIDDLE, Code, read_codes, weights_of
from dipsim.live.models import LoadedModel
from dipsim.live.moments import Moments, moments
from dipsim.live.swiglu import Mlp, check_dense
from dipsim.sparsity.calibrated import BASES, NESTED, Calibrated, Origin, weights_of_tokens
from dipsim.workload.shape import MATRICES

SCORED = 16  # sequences that typical scores are taken from
GRID = 16  # values of a 4-bit grid
ROWS = 256  # of a matrix that are fitted together
EDGES = (0, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.965, 0.98, 0.99, 0.995, 0.998, 1)  # of tokens
QUIET = 0.7  # of a layer's values of glu: those whose columns are taken not to be read
OCTAVE = 8  # parts that errors are rounded to: a byte each holds 32 octaves


def calibrate_precision(
    loaded: LoadedModel, ids: Tensor, text: Path, out: Path, progress: Progress = silent
) -> Calibrated:
    """Calibrate on tokens [S, T] of a text, and write the file `out`.

    Raises InputError for a mixture of experts, and for a model that is no GGUF file, or none whose codes can be nested.
    """
    check_dense(loaded.shape, "calibrate-precision")
    if loaded.path is None:
        raise InputError(f"{loaded.shape.name}: precision is nested in the codes of a GGUF file; give a .gguf file")
    codes = [
        {name: code.to(ids.device) for name, code in matrices.items()}
        for matrices in read_codes(loaded.path, loaded.shape.num_hidden_layers)
    ]
    seen = moments(loaded, ids, progress)
    origin = Origin(
        model=loaded.shape,
        model_sha256=sha256(loaded.path),
        text=text.name,
        text_sha256=sha256(text),
        sequences=ids.shape[0],
        length=ids.shape[1],
        weights=tuple(np.diff(EDGES).tolist()),
    )
    found = Calibrated(out, origin, {})
    with torch.inference_mode():
        for layer, (matrices, each) in enumerate(zip(codes, seen, strict=True)):
            found.tensors[f"layers.{layer}.token_weight"] = each.token_weight.cpu().numpy()
            found.tensors[f"layers.{layer}.value"] = _value(matrices["down_proj"], each.gradients).cpu().numpy()
        quiet = _dense_pass(loaded, ids[:SCORED], found)
        for layer, (matrices, each) in enumerate(zip(codes, seen, strict=True)):
            for name, code in matrices.items():
                sigma = quiet[layer] if name == "down_proj" else each.inputs
                for level in BASES:
                    fitted = fit_base(code, int(NESTED.each[level].code), sigma)
                    found.tensors.update({f"layers.{layer}.{name}.{key}{level}": part for key, part in fitted.items()})
            found.tensors.update(_errors(found, layer, matrices, each))
            progress("fitting layers", layer + 1, len(codes))
    found.write()
    return found


def fit_base(code: Code, bits: int, sigma: Tensor) -> dict[str, Any]:
    """The scales and centres with which so many bits of a code are nearest to its exact weights.

    What is least is the sum over rows of delta' Sigma delta, with Sigma [inputs, inputs]. A group's scale and centre
    are then rounded to grids of 4 bits one after the other, and the later ones of the row make up for the rounding of
    the earlier (as GPTQ, arXiv 2210.17323, does with weights).
    """
    exact, prefix, own = code.exact(), code.prefix(bits), code.row_scale
    values = _values(code, prefix, bits)
    matrices, sides = _normal_equations(values[prefix], exact, sigma)
    solved = torch.linalg.solve(matrices, sides[..., None])[..., 0]
    scale, centre = solved[:, 0::2].clamp(min=1e-6), solved[:, 1::2]
    logs = (scale / own).clamp(min=1e-3).log()
    low, high = _sample(logs).quantile(logs.new_tensor([0.002, 0.998])).tolist()
    scales = torch.linspace(low, high, GRID, device=logs.device)
    centres = _clusters((centre / scale).clamp(-4, 4))
    wanted = torch.stack([scale, centre], -1).flatten(1)
    scale_place, centre_place = _rounded(matrices, wanted, own, scales, centres)
    return {
        "base": (scale_place + 16 * centre_place).to(torch.uint8).cpu().numpy(),
        "scales": scales.float().cpu().numpy(),
        "centres": centres.float().cpu().numpy(),
        "values": values.float().cpu().numpy(),
    }


def _values(code: Code, prefix: Tensor, bits: int) -> Tensor:
    """What each prefix stands for, [2^bits]: the mean of the codes that begin so, weighted by their scales squared."""
    weight = (code.scale.square()[..., None]).expand_as(prefix).flatten()
    places = prefix.flatten()
    sums = weight.new_zeros(2, 1 << bits)
    sums[0].index_add_(0, places, weight * (code.grouped.flatten().float() - MIDDLE))
    sums[1].index_add_(0, places, weight)
    return sums[0] / sums[1].clamp(min=1e-20)


def _normal_equations(basis: Tensor, exact: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix [rows, 2 G, 2 G] and right side [rows, 2 G] for each row's scales and centres, alternately.

    A ten-thousandth of the mean of the diagonal is added to it.
    """
    rows, groups, each = basis.shape
    blocks = sigma.view(groups, each, groups, each)
    summed = blocks.sum(3)
    matrices, sides = basis.new_empty(rows, 2 * groups, 2 * groups), basis.new_empty(rows, 2 * groups)
    matrices[:, 1::2, 1::2] = summed.sum(1)
    for begin in range(0, rows, ROWS):
        here = slice(begin, begin + ROWS)
        part = basis[here]
        matrices[here, 0::2, 0::2] = torch.einsum("rai,raib->rab", part, torch.einsum("aibj,rbj->raib", blocks, part))
        mixed = torch.einsum("rai,aib->rab", part, summed)
        matrices[here, 0::2, 1::2], matrices[here, 1::2, 0::2] = mixed, mixed.transpose(1, 2)
        wanted = (exact[here] @ sigma).view_as(part)
        sides[here, 0::2], sides[here, 1::2] = (part * wanted).sum(-1), wanted.sum(-1)
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    diagonal += 1e-4 * diagonal.mean(1, keepdim=True)
    return matrices, sides


def _rounded(matrices: Tensor, wanted: Tensor, own: Tensor, scales: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Places in the grids of scales and centres, [rows, G] each, of `wanted` [rows, 2 G], errors fed to later ones."""
    inverse = torch.linalg.inv(matrices.double())
    inverse.diagonal(dim1=1, dim2=2).add_(1e-12 * inverse.diagonal(dim1=1, dim2=2).mean(1, keepdim=True))
    try:
        factor = torch.linalg.cholesky(inverse, upper=True).to(wanted.dtype)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        raise InputError("too few tokens to fit scales to; give more (--sequences, --length)") from None
    left = wanted.clone()
    places: tuple[list[Tensor], list[Tensor]] = ([], [])
    scale = own[:, 0]
    for index in range(wanted.shape[1]):
        value = left[:, index]
        if index % 2 == 0:
            place = _nearest((value / own[:, 0]).clamp(min=1e-6).log(), scales)
            scale = rounded = scales[place].exp() * own[:, 0]
        else:
            place = _nearest(value / scale, centres)
            rounded = centres[place] * scale
        places[index % 2].append(place)
        error = (value - rounded) / factor[:, index, index]
        left[:, index + 1 :] -= error[:, None] * factor[:, index, index + 1 :]
    scale_place, centre_place = (torch.stack(each, 1) for each in places)
    return scale_place, centre_place


def _nearest(values: Tensor, grid: Tensor) -> Tensor:
    """The place of the nearest of a rising grid, for each of values [...]."""
    return torch.bucketize(values.contiguous(), (grid[1:] + grid[:-1]) / 2)


def _sample(values: Tensor, count: int = 65536) -> Tensor:
    """Values, but no more than so many of them, evenly spread."""
    flat = values.flatten()
    return flat[torch.linspace(0, flat.numel() - 1, min(flat.numel(), count), device=flat.device).long()]


def _clusters(values: Tensor, rounds: int = 15) -> Tensor:
    """A rising grid near values [...]: k-means, from their quantiles."""
    sample = _sample(values)
    grid = sample.quantile((torch.arange(GRID, device=sample.device) + 0.5) / GRID)
    for _ in range(rounds):
        nearest = _nearest(sample, grid)
        count = torch.bincount(nearest, minlength=GRID)
        mean = torch.bincount(nearest, sample, minlength=GRID) / count.clamp(min=1)
        grid = torch.where(count > 0, mean.to(grid.dtype), grid).sort().values
    return grid


def _errors(found: Calibrated, layer: int, matrices: dict[str, Code], seen: Moments) -> dict[str, Float32s]:
    """The errors of each group's units at each level in one layer, rounded as a byte each would hold them."""
    errors: dict[str, Float32s] = {}
    for name, matrix in zip(("gate", "up", "down"), MATRICES, strict=True):
        weights = weights_of(matrices[matrix], found, layer, matrix)
        exact = weights[-1]
        assert exact is not None
        levels = []
        for each in weights[:-1]:
            delta = exact if each is None else exact - each
            if name == "down":
                levels.append(0.5 * ((seen.gradients @ delta) * delta).sum(0))
            else:
                levels.append(((delta @ seen.inputs) * delta).sum(1))
        rounded = _round_octaves(torch.stack(levels, 1)).cpu().numpy()
        errors[f"layers.{layer}.{name}.errors"] = np.pad(rounded, ((0, 0), (0, 1)))
    return errors


def _value(down: Code, gradients: Tensor) -> Tensor:
    """What a squared unit of each neuron's glu is worth, [m], rounded as a byte would hold it."""
    exact = down.exact()
    return _round_octaves(0.5 * ((gradients @ exact) * exact).sum(0))


def _round_octaves(values: Tensor) -> Tensor:
    """Rounded to eighths of an octave, of which a byte holds 32."""
    return ((values.clamp(min=1e-30).log2() * OCTAVE).round() / OCTAVE).exp2().float()


def _dense_pass(loaded: LoadedModel, ids: Tensor, found: Calibrated) -> list[Tensor]:
    """Enter typical scores; return E[glu glu'] of what is seldom read, [m, m] a layer.

    Scores are means over parts of all tokens [S, T], by rising score. Of glu, the `QUIET` share of a layer's values
    that matter least is taken, the others are 0: columns that are read have no error.
    """
    quiet: list[Tensor] = []

    def watched(mlp: Mlp, layer: int) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            acts = LiveActivations(mlp, x, layer)
            sigmoid = torch.sigmoid(acts.gate_proj)
            slope = sigmoid * (1 + acts.gate_proj * (1 - sigmoid))
            value, weight = (x.new_tensor(found.of(layer, name)) for name in ("value", "token_weight"))
            scores = {
                "gate": (acts.up_proj * slope).square() * value,
                "up": acts.gate.square() * value,
                "down": acts.glu.square(),
            }
            weights = weights_of_tokens(x, weight)
            for name, each in scores.items():
                found.tensors[f"layers.{layer}.{name}.scores"] = _parts((each * weights).flatten(0, 1))
            worth = (scores["down"] * value).flatten(0, 1)
            glu = torch.where(worth < _sample(worth).quantile(QUIET), acts.glu.flatten(0, 1), 0.0).float()
            quiet.append(glu.T @ glu / len(glu))
            return mlp.project("down_proj", acts.glu)

        return forward

    with replaced(loaded.mlps, [watched(mlp, layer) for layer, mlp in enumerate(loaded.mlps)]):
        loaded.model.base_model(input_ids=ids, use_cache=False)
    return quiet


def _parts(scores: Tensor) -> Float32s:
    """Means [Q, N] of parts of scores [T, N], of rising score; a part without tokens takes the score at its place."""
    ordered = scores.sort(dim=0).values.double()
    edges = [round(edge * len(ordered)) for edge in EDGES]
    means = [
        ordered[begin:end].mean(0) if end > begin else ordered[min(begin, len(ordered) - 1)]
        for begin, end in pairwise(edges)
    ]
    return torch.stack(means).float().cpu().numpy().astype(np.float32)
