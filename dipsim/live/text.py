"""Texts as tokens of a loaded model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dipsim.basics.errors import InputError
from dipsim.basics.files import read_text
from dipsim.live.models import LoadedModel


def tokenise(loaded: LoadedModel, path: Path) -> list[int]:
    """The tokens of a UTF-8 text, as one stream without special tokens. Raises InputError if the file is no text."""
    ids: list[int] = loaded.tokenizer(read_text(path), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def check_length(loaded: LoadedModel, length: int) -> None:
    """Raise InputError unless the model takes sequences of that many tokens."""
    limit = getattr(loaded.model.config, "max_position_embeddings", None)
    if limit and length > limit:
        raise InputError(
            f"length: {length} is more than the {limit} positions that {loaded.shape.name} takes; use a shorter one"
        )


def read_tokens(loaded: LoadedModel, text: Path, sequences: int | None, length: int) -> Tensor:
    """The first `sequences` x `length` tokens of a UTF-8 text, by default all whole sequences, [sequences, length].

    Raises InputError if the file is no text, or too short.
    """
    for name, value in (("sequences", 1 if sequences is None else sequences), ("length", length - 1)):
        if value < 1:
            raise InputError(f"{name}: too few; at least 1 sequence of 2 tokens is needed")
    ids = tokenise(loaded, text)
    count = len(ids) // length if sequences is None else sequences
    wanted = max(count, 1) * length
    if len(ids) < wanted:
        raise InputError(
            f"{text}: has {len(ids)} tokens; {max(count, 1)} x {length} are wanted; give a longer text or ask for less"
        )
    check_length(loaded, length)
    return torch.tensor(ids[:wanted], device=loaded.model.device).reshape(-1, length)
