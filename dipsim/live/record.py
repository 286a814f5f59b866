"""Records a trace: runs a real model over a text and writes what its MLPs saw and computed, or what its routers said.

The model runs unpruned (teacher forcing), so a policy replayed on the trace is open loop: its pruning changes neither
later layers nor later tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dipsim.basics.arrays import Float32s
from dipsim.basics.errors import InputError
from dipsim.basics.files import read_text, sha256
from dipsim.basics.progress import Progress, silent
from dipsim.live.experts import as_routing
from dipsim.live.models import LoadedModel, hooked, load
from dipsim.live.swiglu import Mlp
from dipsim.live.text import check_length, tokenise
from dipsim.workload.recorded import write_routing, write_trace
from dipsim.workload.routing import Routing
from dipsim.workload.trace import Activations, Header, read_only

Hook = Callable[..., Any]


def record(
    model_name: str,
    text_file: Path,
    out: Path,
    *,
    tokens: int = 256,
    sequence_length: int | None = None,
    dtype: str | None = None,
    torch_dtype: str = "float32",
    device: str = "cpu",
    next_layer: bool = False,
    progress: Progress = silent,
) -> Header:
    """Record the first `tokens` tokens of a UTF-8 text into the trace `out`, and return its header.

    The text is tokenised as one stream without special tokens and cut into sequences of `sequence_length` tokens
    (default: a single one; the last may be shorter). `dtype` is the trace's (int8, the default, float16 or float32),
    `torch_dtype` the model's. Of a mixture of experts the trace has the routers' logits, always in float32. With
    `next_layer` it also has what the next layer makes of each layer's input, which prefetchers guess from. Raises
    InputError for anything the user can mend.
    """
    if not read_text(text_file).strip():
        raise InputError(f"{text_file}: is empty; give a file with some text")
    length = tokens if sequence_length is None else sequence_length
    for what, value in (("tokens", tokens), ("sequence length", length)):
        if value <= 0:
            raise InputError(f"{what} {value}: must be more than 0")
    if dtype not in (None, "int8", "float16", "float32"):
        raise InputError(f"trace dtype {dtype!r}: is not known; use int8, float16 or float32")
    loaded = load(model_name, torch_dtype, device)
    if loaded.routers and dtype not in (None, "float32"):
        raise InputError(f"trace dtype {dtype!r}: the routing of a mixture of experts is float32; leave --dtype out")
    if next_layer and len(loaded.routers or loaded.mlps) < 2:
        what = "mixture of experts" if loaded.routers else "layer"
        raise InputError(f"{model_name}: has only one {what}, and so no next one; leave --next-layer out")
    dtype = dtype or ("float32" if loaded.routers else "int8")
    ids = tokenise(loaded, text_file)
    if len(ids) < tokens:
        raise InputError(
            f"{text_file}: has {len(ids)} tokens; {tokens} are wanted, so give a longer text or fewer tokens"
        )
    check_length(loaded, min(length, tokens))
    starts = range(0, tokens, length)
    source = loaded.source | {
        "text": text_file.name,
        "text_sha256": sha256(text_file),
        "tokens": tokens,
        "dtype": dtype,
    }
    header = Header(model=loaded.shape, sequence_starts=tuple(starts), source=source)
    sequences = [ids[i : i + length][: tokens - i] for i in starts]
    if loaded.routers:
        write_routing(out, header, collect_routing(loaded, sequences, progress, next_layer))
    else:
        write_trace(out, header, collect(loaded, sequences, progress, next_layer), dtype)
    return header


def collect(
    loaded: LoadedModel, sequences: list[list[int]], progress: Progress = silent, next_layer: bool = False
) -> list[Activations]:
    """Every layer's activations, float32, for token sequences run one after the other, each from its own beginning.

    With `next_layer` all but the last also have what the next layer makes of their input.
    """
    tokens = sum(map(len, sequences))

    def empty(size: int) -> Float32s:
        return np.empty((tokens, size), np.float32)

    d, m = loaded.shape.hidden_size, loaded.shape.intermediate_size
    followed = [next_layer] * (len(loaded.mlps) - 1) + [False]
    layers = [Activations(empty(d), empty(m), empty(m), next_layer=empty(m) if each else None) for each in followed]
    total, done, start = len(sequences) * len(layers), 0, 0

    def keep(into: Float32s, values: Tensor) -> None:
        into[start : start + values.shape[1]] = values[0].float().cpu().numpy()

    def hook(acts: Activations, names: tuple[str, ...], _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        keep(acts.mlp_input, inputs[0])
        for name, values in zip(names, output.chunk(len(names), dim=-1), strict=True):
            keep(getattr(acts, name), values)

    def guess(into: Float32s, following: Mlp, _: nn.Module, inputs: tuple[Tensor], _output: Tensor) -> None:
        keep(into, following.glu(inputs[0]).abs())

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        progress("recording layers", done, total)

    hooks: list[tuple[nn.Module, Hook]] = []
    for mlp, acts in zip(loaded.mlps, layers, strict=True):
        hooks += [(linear, partial(hook, acts, names)) for linear, names in mlp.linears[:-1]]
        hooks.append((mlp.module, count))
    for mlp, acts, following in zip(loaded.mlps, layers, loaded.mlps[1:], strict=False):
        if acts.next_layer is not None:
            hooks.append((mlp.linears[0][0], partial(guess, acts.next_layer, following)))
    with hooked(hooks):
        for sequence in sequences:
            _run(loaded, sequence)
            start += len(sequence)
    return layers


def collect_routing(
    loaded: LoadedModel, sequences: list[list[int]], progress: Progress = silent, next_layer: bool = False
) -> list[Routing]:
    """The routing of every layer with a mixture, for token sequences run one after the other as above.

    With `next_layer` all but the last also have the logits that the next one's router makes of their router's input.
    """
    routers = loaded.routers
    logits: list[list[Float32s]] = [[] for _ in routers]
    guesses: list[list[Float32s]] = [[] for _ in routers]
    total = len(sequences) * len(logits)

    def hook(place: int, _: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        logits[place].append(output[0].float().cpu().numpy())
        if next_layer and place + 1 < len(routers):
            guesses[place].append(routers[place + 1].logits(inputs[0]).float().cpu().numpy())
        progress("recording layers", sum(map(len, logits)), total)

    with hooked((router.module, partial(hook, place)) for place, router in enumerate(routers)):
        for sequence in sequences:
            _run(loaded, sequence)
    found = []
    for router, own, guessed in zip(routers, logits, guesses, strict=True):
        routing = as_routing(loaded.shape, np.concatenate(own), router.layer)
        found.append(replace(routing, next_layer=read_only(np.concatenate(guessed))) if guessed else routing)
    return found


@torch.inference_mode()
def _run(loaded: LoadedModel, sequence: list[int]) -> None:
    """Run one sequence, without lm_head: the logits of tokens are not needed."""
    loaded.model.base_model(input_ids=torch.tensor([sequence], device=loaded.model.device), use_cache=False)
