import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny import SHAPE, activations

from dipsim.basics.errors import InputError
from dipsim.workload import Trace, recorded
from dipsim.workload.recorded import decode, encode, write_trace
from dipsim.workload.trace import TENSORS, Header, silu


@pytest.mark.parametrize(("dtype", "error"), [("float32", 0), ("float16", 1e-3), ("int8", 1 / 127)])
def test_round_trip(tiny_trace, dtype, error):
    opened = tiny_trace(dtype=dtype)
    assert (opened.tokens, opened.shape, opened.sequence_starts) == (12, SHAPE, (0,))
    for index, acts in enumerate(activations()):
        read = opened.layer(index)
        for name in TENSORS:
            wanted = getattr(acts, name)
            assert getattr(read, name).dtype == np.float32
            assert getattr(read, name) == pytest.approx(wanted, abs=float(error * np.abs(wanted).max()))


def test_reads_only_the_tokens_asked_for(tiny_trace):
    opened = tiny_trace()
    assert opened.layer(0, tokens=5).mlp_input.tolist() == opened.layer(0).mlp_input[:5].tolist()


THREE = SHAPE.model_copy(update={"num_hidden_layers": 3})


def guessing(shape=THREE, tokens=12):
    """The activations of every layer, the last without what the next one would make of its input."""
    made = activations(shape, tokens)
    *others, last = (replace(acts, next_layer=abs(acts.glu[:, ::-1])) for acts in made)
    return [*others, replace(last, next_layer=None)]


@pytest.mark.parametrize(("dtype", "error"), [("float32", 0), ("float16", 1e-3), ("int8", 1 / 127)])
def test_what_the_next_layer_makes_of_an_input_comes_back(tmp_path, dtype, error):
    path, layers = tmp_path / "t.safetensors", guessing()
    write_trace(path, Header(model=THREE), layers, dtype)
    opened = Trace.open(path)
    for index, acts in enumerate(layers[:2]):
        read = opened.layer(index, 7).next_layer
        assert (read.dtype, read.shape, read.flags.writeable) == (np.float32, (7, 24), False)
        assert read == pytest.approx(acts.next_layer[:7], abs=float(error * acts.next_layer.max()))
        assert opened.layer(index).at(5).next_layer.tolist() == opened.layer(index).next_layer[5].tolist()
    assert opened.layer(2).next_layer is None
    assert opened.layer(2).at(5).next_layer is None


def test_a_trace_without_it_has_the_tensors_it_always_had(tiny_trace):
    opened = tiny_trace()
    assert [opened.layer(index).next_layer for index in range(2)] == [None, None]
    with safe_open(opened.path, framework="np") as file:
        assert set(file.keys()) == {f"layers.{index}.{name}" for index in range(2) for name in TENSORS}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({0: None}, r"layers\.0\.next_layer: is missing, but other layers have it; record the trace again"),
        ({1: None}, r"layers\.1\.next_layer: is missing, but other layers have it; record the trace again"),
        ({2: np.ones((12, 24), np.float32)}, r"layers\.2\.next_layer: there is no layer after the last; leave it out"),
        ({1: np.ones((12, 16), np.float32)}, r"layers\.1\.next_layer: has shape \[12, 16\]; \[12, 24\] is expected"),
        ({1: np.ones((11, 24), np.float32)}, r"layers\.1\.next_layer: has shape \[11, 24\]; \[12, 24\] is expected"),
        ({1: np.ones((12, 24))}, r"layers\.1\.next_layer: dtype F64 is not one of F16, F32, I8 with scales"),
        ({1: np.ones((12, 24), np.int8)}, r"layers\.1\.next_layer\.scale: is missing; int8 needs scales"),
        (
            {1: np.full((12, 24), np.inf, np.float32)},
            r"layers\.1\.next_layer: holds NaN or infinite values; record the",
        ),
    ],
)
def test_what_the_next_layer_cannot_have_made_is_one_line(tmp_path, change, complaint):
    path = tmp_path / "bad.safetensors"
    guesses = {index: acts.next_layer for index, acts in enumerate(guessing())} | change
    content = {f"layers.{i}.next_layer": values for i, values in guesses.items() if values is not None}
    save_file(content | tensors(THREE), path, metadata=recorded.metadata(Header(model=THREE)))
    with pytest.raises(InputError, match=complaint) as error:
        Trace.open(path).layer(1)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_only_what_can_be_read_again_of_the_next_layer_is_written(tmp_path):
    first, second, last = guessing()
    path, header = tmp_path / "t.safetensors", Header(model=THREE)
    with pytest.raises(InputError, match=r"layers\.1\.next_layer: is missing"):
        write_trace(path, header, [first, replace(second, next_layer=None), last])
    with pytest.raises(InputError, match=r"layers\.2\.next_layer: there is no layer after the last"):
        write_trace(path, header, [first, second, replace(last, next_layer=first.next_layer)])
    large = replace(second, next_layer=1e5 * np.ones_like(second.next_layer))
    with pytest.raises(InputError, match=r"layers\.1\.next_layer: values are not finite in float16; try --dtype"):
        write_trace(path, header, [first, large, last], "float16")
    assert not list(tmp_path.iterdir())


def test_int8_blocks_follow_their_own_scale():
    values = np.repeat(np.float32([1e-3, 1.0]), 32)[None] * np.linspace(-1, 1, 64, dtype=np.float32)
    quantised, scale = encode(values)
    assert scale.shape == (1, 2)
    assert np.abs(decode(quantised, scale)[0, :32] - values[0, :32]).max() < 1e-5
    assert decode(*encode(np.zeros((1, 64), np.float32))).any() == 0


def test_a_product_that_no_float_holds_is_one_line(tiny_trace):
    acts = replace(tiny_trace().layer(1), gate_proj=np.full((2, 3), 1e20, np.float32))
    np.testing.assert_array_equal(replace(acts, up_proj=np.full((2, 3), 2e10, np.float32)).glu, np.float32(2e30))
    with pytest.raises(InputError, match=r"^layer 1: gate times up is more than float32 holds"):
        _ = replace(acts, up_proj=np.full((2, 3), 2e20, np.float32)).glu


def test_silu_and_glu():
    x = np.float32([-100, -1, 0, 1, 100])
    assert silu(x) == pytest.approx(x / (1 + np.exp(-x.astype(float))), abs=1e-6)
    acts = activations()[0]
    assert acts.glu == pytest.approx(silu(acts.gate_proj) * acts.up_proj)


def tensors(shape=SHAPE):
    return {f"layers.{i}.{n}": getattr(a, n) for i, a in enumerate(activations(shape)) for n in TENSORS}


META = recorded.metadata(Header(model=SHAPE))


@pytest.mark.parametrize(
    ("change", "meta", "complaint"),
    [
        ({"layers.1.up_proj": None}, {}, r"layers\.1\.up_proj: is missing"),
        ({"layers.0.up_proj": np.zeros((12, 7), np.float32)}, {}, r"has shape \[12, 7\]; \[12, 24\]"),
        ({"layers.0.up_proj": np.zeros((11, 24), np.float32)}, {}, r"has shape \[11, 24\]"),
        ({"layers.0.up_proj": np.zeros(12, np.float32)}, {}, "has shape"),
        ({"layers.0.mlp_input": np.zeros((0, 16), np.float32)}, {}, "has shape"),
        ({"layers.0.up_proj": np.zeros((12, 24), np.float64)}, {}, "dtype F64"),
        ({"layers.0.up_proj": np.zeros((12, 24), np.int8)}, {}, r"up_proj\.scale: is missing"),
        ({}, {"format": "other"}, "not a dipsim trace"),
        ({}, {"version": "2"}, "version"),
        ({}, {"model": "{"}, "model: is not JSON"),
        ({}, {"model": json.dumps({"hidden_size": 16})}, "is required but missing"),
        ({}, {"model": json.dumps(SHAPE.model_dump() | {"name": "a\x1b[2J"})}, r"model\.name: has a control character"),
        ({}, {"activation": "gelu"}, "activation"),
        ({}, {"sequence_starts": "[0, 12]"}, "sequence_starts"),
        ({}, {"sequence_starts": "[3]"}, "sequence_starts"),
        ({}, {"sequence_starts": "[]"}, "sequence_starts"),
        ({}, {"surprise": "1"}, "surprise: unknown key"),
    ],
)
def test_files_that_are_not_traces(tmp_path, change, meta, complaint):
    path = tmp_path / "bad.safetensors"
    content = {key: value for key, value in (tensors() | change).items() if value is not None}
    save_file(content, path, metadata=META | meta)
    with pytest.raises(InputError, match=complaint) as error:
        Trace.open(path)
    assert "\n" not in str(error.value)


def test_truncated_foreign_and_not_finite(tmp_path):
    path = tmp_path / "bad.safetensors"
    save_file(tensors(), path, metadata=META)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        Trace.open(path)
    path.write_bytes(b"PK not a trace")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        Trace.open(path)
    save_file(tensors() | {"layers.1.gate_proj": np.full((12, 24), np.nan, np.float32)}, path, metadata=META)
    with pytest.raises(InputError, match=r"layers\.1\.gate_proj: holds NaN"):
        Trace.open(path).layer(1)


def test_saving_refuses_what_it_cannot_hold(tmp_path):
    acts = activations()
    acts[1].up_proj[0, 0] = 1e6
    with pytest.raises(InputError, match=r"layers\.1\.up_proj: values are not finite in float16"):
        write_trace(tmp_path / "t.safetensors", Header(model=SHAPE), acts, dtype="float16")
    acts[1].up_proj[0, 0] = np.inf
    with pytest.raises(InputError, match="not finite"):
        write_trace(tmp_path / "t.safetensors", Header(model=SHAPE), acts)
    assert not list(tmp_path.iterdir())


def test_a_format_is_a_subclass_that_names_its_suffix(tmp_path, monkeypatch):
    monkeypatch.setattr(Trace, "_formats", dict(Trace._formats))
    assert sorted(Trace._formats) == [".safetensors", ".yaml"]

    class Silent(Trace, suffix=".yaml"):
        @classmethod
        def load(cls, path):
            return cls(path, Header(model=SHAPE, sequence_starts=(0, 2)), 5)

        def layer(self, index, tokens=None):
            self._check_layer(index)
            return activations(tokens=tokens or 5)[index]

    (tmp_path / "mine.yaml").write_text("")
    opened = Trace.open(tmp_path / "mine.yaml")
    assert (type(opened), opened.name, opened.longest_sequence(), opened.longest_sequence(1)) == (Silent, "mine", 3, 1)
    with pytest.raises(InputError, match="layer 2: the trace has 2"):
        opened.layer(2)


def test_a_scale_that_is_infinite_is_one_line(tiny_trace):
    path = tiny_trace(dtype="int8").path
    tensors = load_file(path)
    tensors["layers.1.up_proj.scale"][0, 0] = np.inf
    with safe_open(path, framework="np") as file:
        save_file(tensors, path, file.metadata())
    with pytest.raises(InputError, match=r"layers\.1\.up_proj: holds NaN or infinite values"):
        Trace.open(path).layer(1)
