"""What the tests share: a tiny model, a tiny random trace, and the command line run in this process."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():  # kernels run in Triton's interpreter; said before anything imports Triton
    os.environ["TRITON_INTERPRET"] = "1"

from dipsim import cli, trace
from dipsim.model import ModelShape
from dipsim.trace import Activations, Header, Trace

SHAPE = ModelShape(
    name="tiny",
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=32,
)


def activations(shape=SHAPE, tokens=12, seed=0):
    rng = np.random.default_rng(seed)
    sizes = (shape.hidden_size, shape.intermediate_size, shape.intermediate_size)
    return [
        Activations(*(rng.standard_t(4, (tokens, size)).astype(np.float32) for size in sizes))
        for _ in range(shape.num_hidden_layers)
    ]


@pytest.fixture
def tiny_trace(tmp_path):
    """Opens a random trace; arguments as those of `activations`, and `starts`."""

    def make(shape=SHAPE, tokens=12, seed=0, starts=(0,), name="tiny", dtype="float32"):
        path = tmp_path / f"{name}.safetensors"
        header = Header(model=shape, sequence_starts=starts)
        trace.save(path, header, activations(shape, tokens, seed), dtype=dtype)
        return Trace.open(path)

    return make


@pytest.fixture
def cli_run(capsys, monkeypatch):
    """Runs `dipsim ARGS`; returns (exit status, stdout, stderr)."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["dipsim", *map(str, args)])
        capsys.readouterr()  # what the test itself wrote before
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def checkout():
    return Path(__file__).resolve().parent.parent
