"""The 4-bit codes of a model's MLPs, as its GGUF file has them, and the weights of each level of precision.

A code is nested: its highest bits are a code of fewer bits. Each level has scales of its own, fitted by
`calibrate_precision.py`; the highest has the file's, in 8 bits (docs/background/precision.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipsim.basics.errors import InputError
from dipsim.basics.files import sha256
from dipsim.live.leveled import Leveled
from dipsim.live.models import LoadedModel
from dipsim.sparsity.calibrated import BASES, NESTED, SUFFIX, Calibrated
from dipsim.sparsity.policy import Policy

GROUP = 32  # weights along an input that share a scale
MIDDLE = 7.5  # of the codes 0 to 15
CODE_BITS = 4
_NAMES = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


@dataclass(frozen=True)
class Code:
    """A matrix [rows, inputs] in a 4-bit code: w = centre + scale (code - 7.5), each [rows, groups] for 32 inputs."""

    code: Tensor
    scale: Tensor
    centre: Tensor

    def to(self, device: Any) -> Code:
        """The same on another device."""
        return Code(self.code.to(device), self.scale.to(device), self.centre.to(device))

    @property
    def grouped(self) -> Tensor:
        """The code as [rows, groups, 32]."""
        return self.code.view(*self.scale.shape, GROUP)

    def prefix(self, bits: int) -> Tensor:
        """The highest bits of the code, [rows, groups, 32] (int64)."""
        return (self.grouped >> (CODE_BITS - bits)).long()

    @property
    def row_scale(self) -> Tensor:
        """The largest scale of a row in 16 bits, [rows, 1]: what 8-bit scales are 255 parts of."""
        return (self.scale.amax(1, keepdim=True) / 255).half().float() * 255

    def exact(self) -> Tensor:
        """The weights [rows, inputs] with scales of 8 bits."""
        step = self.row_scale.clamp(min=1e-8) / 255
        centre_step = (self.centre.abs().amax(1, keepdim=True) / 127).half().float().clamp(min=1e-8)
        scale = (self.scale / step).round().clamp(0, 255) * step
        centre = (self.centre / centre_step).round().clamp(-127, 127) * centre_step
        return (centre[..., None] + scale[..., None] * (self.grouped.float() - MIDDLE)).flatten(1)

    def based(self, bits: int, scale: Tensor, centre: Tensor, values: Tensor) -> Tensor:
        """The weights [rows, inputs] of a base: so many bits of the code stand for `values` [2^bits]."""
        own = self.row_scale
        return ((own * centre)[..., None] + (own * scale)[..., None] * values[self.prefix(bits)]).flatten(1)


def read_codes(path: Path, layers: int) -> list[dict[str, Code]]:
    """The codes of gate_proj, up_proj and down_proj of each layer of a GGUF file.

    Raises InputError if the file cannot be read, or a matrix is not in a code that can be nested.
    """
    import gguf

    try:
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{path}: not a readable GGUF file ({error})") from None
    found = []
    for layer in range(layers):
        matrices = {}
        for matrix, name in _NAMES.items():
            key = f"blk.{layer}.{name}.weight"
            if key not in tensors:
                raise InputError(f"{path}: {key}: is missing; give the GGUF file of a model with dense MLPs")
            matrices[matrix] = _decode(tensors[key], f"{path}: {key}")
        found.append(matrices)
    return found


def _decode(tensor: Any, where: str) -> Code:
    """The code of a GGUF tensor: blocks of 32 weights in 16 bytes after a scale and, of Q4_1, a minimum."""
    kind = tensor.tensor_type.name
    if kind not in ("Q4_0", "Q4_1"):
        raise InputError(f"{where}: is in {kind}, whose bits cannot be nested; those of Q4_0 and Q4_1 can")
    inputs, rows = (int(size) for size in tensor.shape)
    head = 2 if kind == "Q4_0" else 4
    blocks = np.array(tensor.data).view(np.uint8).reshape(rows, inputs // GROUP, head + GROUP // 2)
    halves = blocks[..., :head].copy().view(np.float16).astype(np.float32)
    packed = blocks[..., head:]
    code = np.concatenate([packed & 15, packed >> 4], axis=-1).reshape(rows, inputs)
    scale = halves[..., 0]
    lowest = halves[..., 1] if kind == "Q4_1" else -8 * scale
    if (scale < 0).any():  # a code that falls as weights rise: turned over, so that scales are positive
        turned = scale < 0
        code = np.where(np.repeat(turned, GROUP, axis=1), 15 - code, code)
        lowest, scale = np.where(turned, lowest + 15 * scale, lowest), np.abs(scale)
    return Code(torch.from_numpy(code), torch.from_numpy(scale), torch.from_numpy(lowest + MIDDLE * scale))


def weights_of(code: Code, calibrated: Calibrated, layer: int, matrix: str) -> list[Tensor | None]:
    """The weights [rows, inputs] of a matrix at each level, None at the level that has nothing."""
    found: list[Tensor | None] = [None]
    for level, each in enumerate(NESTED.each[1:], start=1):
        if level not in BASES:
            found.append(code.exact())
            continue
        scale, centre = torch.from_numpy(calibrated.base(layer, matrix, level)).to(code.code.device)
        values = torch.from_numpy(calibrated.of(layer, f"{matrix}.values{level}")).to(code.code.device)
        found.append(code.based(int(each.code), scale, centre, values))
    return found


def nested_weights(loaded: LoadedModel, policy: Policy) -> list[dict[str, Leveled]]:
    """The weights of each layer's matrices at each level, by the calibration that a policy reads.

    Raises InputError if the policy reads none, or it is one of another model, or the model is no GGUF file.
    """
    calibrated = calibration_of(loaded, policy)
    assert loaded.path is not None
    changed = calibrated.path.stat().st_mtime_ns
    return _nested(loaded.path, calibrated.path, changed, loaded.model.device, loaded.model.dtype)


def calibration_of(loaded: LoadedModel, policy: Policy) -> Calibrated:
    """The calibration that a policy reads. Raises InputError as `nested_weights` says."""
    files = [path for path in policy.files() if path.name.endswith(SUFFIX)]
    if len(files) != 1 or loaded.path is None:
        raise InputError(
            f"policy {policy.label}: its levels are nested in the codes of a GGUF file, by a calibration *{SUFFIX}; "
            "use a .gguf model without an adapter, and a file of `dipsim calibrate-precision`"
        )
    calibrated = Calibrated.read(files[0])
    if calibrated.origin.model_sha256 != sha256(loaded.path):
        raise InputError(
            f"{calibrated.path}: was made of another file of {calibrated.origin.model.name} than {loaded.path.name}; "
            "make one of this file"
        )
    return calibrated


@lru_cache(maxsize=1)  # settings are evaluated one after the other, and most have the same
def _nested(
    path: Path, calibration: Path, _changed: int, device: torch.device, dtype: torch.dtype
) -> list[dict[str, Leveled]]:
    calibrated = Calibrated.read(calibration)

    def all_levels(code: Code, layer: int, matrix: str) -> Leveled:
        weights = weights_of(code.to(device), calibrated, layer, matrix)
        added = calibrated.added(layer, matrix)
        factors = added and (torch.from_numpy(added[0]).to(device), torch.from_numpy(added[1]).to(device))
        return Leveled([None if weight is None else weight.to(dtype) for weight in weights], factors)

    layers = read_codes(path, calibrated.origin.model.num_hidden_layers)
    return [
        {matrix: all_levels(code, layer, matrix) for matrix, code in matrices.items()}
        for layer, matrices in enumerate(layers)
    ]
