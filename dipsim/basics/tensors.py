"""The tensors of a .safetensors file, all at once: for small files, such as those of what was learned of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from dipsim.basics.errors import InputError, one_line
from dipsim.basics.fields import parse
from dipsim.basics.files import check_regular
from dipsim.basics.limits import check_memory

LARGEST = 1e15  # of a number: two of them can be multiplied in float32
Origin = TypeVar("Origin", bound=BaseModel)


def read_tensors(path: Path, fix: str) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """The metadata and the tensors of a file. Raises InputError, ending with `fix`, for any other file.

    Numbers that are not finite, or absurdly large, are refused: nothing that was learned has any.
    """
    try:
        check_regular(path)
        check_memory(path.stat().st_size, str(path), fix)
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:  # the last three: of a dtype
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a readable safetensors file ({one_line(error)}); {fix}") from None
    for name, tensor in tensors.items():
        numbers = tensor.dtype.kind in "biuf"
        if not numbers or not (np.abs(tensor.astype(np.float64)) <= LARGEST).all():  # so written for NaN
            raise InputError(f"{path}: {name}: holds NaN, or numbers that are not within {LARGEST:g} of 0; {fix}")
    return metadata, tensors


def read_learned(path: Path, kind: type[Origin], fix: str) -> tuple[Origin, dict[str, NDArray[Any]]]:
    """Where a file comes from, which its metadata says under `origin`, and its tensors. Raises InputError as above."""
    metadata, tensors = read_tensors(path, fix)
    try:
        found = json.loads(metadata.get("origin", "{}"))
    except (ValueError, RecursionError):
        raise InputError(f"{path}: origin: is not JSON; {fix}") from None
    try:
        return parse(kind, found, path), tensors
    except InputError as error:
        raise InputError(f"{error}; {fix}") from None
