"""A model, a trace and a device so small that every figure can be worked out on paper.

Each part has its own bits: a weight of lm_head has 2 bytes, one of attention 1, one of the MLP half a byte, a value of
the KV cache 4. So a layer has 48 B of attention and three matrices of 16 B; a position takes 16 B there; a column of
down_proj has 2 B. lm_head has 80 B. In a microsecond Flash moves 1 B after the 10 us of a command, DRAM moves 10 B, and
10 operations are computed.
"""

import numpy as np
from oracles import device

from dipsim.workload import Trace
from dipsim.workload.recorded import write_trace
from dipsim.workload.shape import BitWidths, ModelShape
from dipsim.workload.trace import Activations, Header

SHAPE = ModelShape(
    name="hand",
    hidden_size=4,
    intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=10,
    bits=BitWidths(lm_head=16, attention=8, mlp=4, kv_cache=32),
)
WANTED = ((0, 1, 2), (0, 1, 4), (1, 3, 5), (5, 6, 7), (0, 2, 5))  # the neurons of largest |glu| of each token
STARTS = (0, 3)
DEVICE = {
    "name": "hand",
    "flash": {"read_bandwidth": "1 MB/s", "command_time": "10 us"},
    "dram": {"capacity": "1 kB", "bandwidth": "10 MB/s"},
    "compute": {"throughput": "0.01 GFLOP/s"},
    "energy": {"flash": "2 nJ/B", "dram": "1 nJ/B", "compute": "3 nJ/FLOP"},
}
HAND = device(**DEVICE)
MICRO = 1e-6


def activations(wanted=WANTED):
    """The activations of each layer: of these neurons, the first is the largest."""
    tokens = len(wanted)
    gate = np.zeros((tokens, 8), dtype=np.float32)
    for row, columns in zip(gate, wanted, strict=True):
        row[list(columns)] = 10 - np.arange(len(columns))
    inputs = np.arange(1, 4 * tokens + 1, dtype=np.float32).reshape(tokens, 4)
    return [Activations(inputs, gate, np.ones_like(gate)) for _ in range(2)]


def hand_trace(folder, wanted=WANTED, starts=STARTS, name="hand", **header):
    """The trace, written into a folder and opened."""
    path = folder / f"{name}.safetensors"
    write_trace(path, Header(model=SHAPE, sequence_starts=starts, **header), activations(wanted), "float32")
    return Trace.open(path)
