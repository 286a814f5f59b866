"""What a trace gives for some of its tokens, and what its file must not hold."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import SHAPE, activations

from dipsim.basics.errors import InputError
from dipsim.workload import Trace, recorded
from dipsim.workload.recorded import decode, encode, write_trace
from dipsim.workload.trace import TENSORS, Header, sequences

HEADER = Header(model=SHAPE)


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
@pytest.mark.parametrize("tokens", [1, 5, 11])
def test_fewer_tokens_are_the_first_ones_with_their_own_scales(tiny_trace, dtype, tokens):
    """The scale of a row follows its largest value, and no two rows have the same."""
    trace = tiny_trace(dtype=dtype)
    for index in range(2):
        whole, fewer = trace.layer(index), trace.layer(index, tokens)
        for name in TENSORS:
            assert getattr(fewer, name).tolist() == getattr(whole, name)[:tokens].tolist()
            assert np.abs(getattr(fewer, name) - getattr(activations()[index], name)[:tokens]).max() < 0.1


def test_int8_by_hand():
    """127 steps up to the largest value of a block, which is the whole row where 32 does not divide it."""
    values = np.float32([[0, 1, -2, 127], [12.7, -6.35, 0.1, 0]])
    quantised, scale = encode(values)
    assert quantised.tolist() == [[0, 1, -2, 127], [127, -63, 1, 0]]
    assert scale[:, 0].tolist() == pytest.approx([1, 0.1], rel=1e-3)
    assert (scale.shape, encode(values, block=2)[1].shape) == ((2, 1), (2, 2))
    assert decode(np.int8([[1, 2, 3, -4]]), np.float16([[2, 0.5]])).tolist() == [[2, 4, 1.5, -2]]


def test_a_scale_that_rounds_down_is_raised():
    """127 x 1.0003 would need more than 127 steps of the nearest float16, which is 1."""
    quantised, scale = encode(np.float32([[127 * 1.0003, 1]]))
    assert scale.item() == np.float16(1 + 2**-10)
    assert quantised.tolist() == [[127, 1]]
    assert encode(np.zeros((1, 2), np.float32))[1].item() == np.finfo(np.float16).smallest_subnormal


def changed(folder, **tensors):
    """A file of int8 with some tensors replaced; `a__b` stands for `layers.a.b`."""
    path = folder / "t.safetensors"
    write_trace(path, HEADER, activations())
    new = {f"layers.{key[0]}.{key[3:].replace('__', '.')}": value for key, value in tensors.items()}
    save_file(load_file(path) | new, path, metadata=recorded.metadata(HEADER))
    return path


@pytest.mark.parametrize(
    ("shape", "shown"),
    [((12, 7), "[12, 7]"), ((11, 1), "[11, 1]"), ((12,), "[12]"), ((12, 1, 1), "[12, 1, 1]"), ((12, 0), "[12, 0]")],
)
def test_scales_of_another_shape_are_refused(tmp_path, shape, shown):
    path = changed(tmp_path, **{"0__up_proj__scale": np.ones(shape, np.float16)})
    with pytest.raises(InputError) as error:
        Trace.open(path)
    assert str(error.value) == f"{path}: layers.0.up_proj.scale: int8 needs scales [12, blocks] (found {shown})"


def test_scales_of_another_kind_are_refused_and_float32_is_not(tmp_path):
    with pytest.raises(InputError, match=r"layers\.1\.gate_proj\.scale: dtype F64 is not one of F16, F32"):
        Trace.open(changed(tmp_path, **{"1__gate_proj__scale": np.ones((12, 1))}))
    path = changed(tmp_path, **{"1__gate_proj__scale": np.full((12, 2), 3, np.float32)})
    values = load_file(path)["layers.1.gate_proj"]
    assert Trace.open(path).layer(1).gate_proj.tolist() == (3.0 * values).tolist()


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_dtype_holds_what_is_not_finite(tmp_path, dtype, value):
    acts = activations()
    acts[0].gate_proj[3, 1] = value
    with pytest.raises(InputError, match=rf"layers\.0\.gate_proj: values are not finite in {dtype}; try --dtype"):
        write_trace(tmp_path / "t.safetensors", HEADER, acts, dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("dtype", "most"), [("int8", 127 * 65504.0), ("float16", 65504.0), ("float32", 1e30)])
def test_the_largest_value_of_a_dtype(tmp_path, dtype, most):
    acts = activations()
    acts[0].mlp_input[0, 0] = -most
    path = tmp_path / "t.safetensors"
    write_trace(path, HEADER, acts, dtype)
    assert Trace.open(path).layer(0).mlp_input[0, 0] == np.float32(-most)
    if dtype != "float32":
        acts[0].mlp_input[0, 0] = 1.001 * most
        with pytest.raises(InputError, match="not finite"):
            write_trace(path, HEADER, acts, dtype)


@pytest.mark.parametrize("index", [-1, 2, 7])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_layer_that_there_is_not(tiny_trace, index, dtype):
    trace = tiny_trace(dtype=dtype)
    with pytest.raises(InputError) as error:
        trace.layer(index)
    assert str(error.value) == f"{trace.path}: layer {index}: the trace has 2"
    assert [trace.layer(index).layer for index in trace.layers] == [0, 1]


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_layers_as_the_model_has(tmp_path, count):
    layers = [*activations(), *activations()][:count]
    with pytest.raises(InputError, match=f"t.safetensors: {count} layers for a model of 2"):
        write_trace(tmp_path / "t.safetensors", HEADER, layers)


@pytest.mark.parametrize(
    ("starts", "good"), [((0,), True), ((0, 11), True), ((0, 12), False), ((0, 5, 5), False), ((0, 7, 3), False),
                         ((1,), False), ((0, 1, 2, 3), True)]
)  # fmt: skip
def test_where_sequences_may_start(tmp_path, starts, good):
    path = tmp_path / "t.safetensors"
    write_trace(path, Header(model=SHAPE, sequence_starts=starts), activations())
    if good:
        assert Trace.open(path).sequence_starts == starts
    else:
        with pytest.raises(InputError, match="sequence_starts: must rise from 0 and stay below the 12 tokens recorded"):
            Trace.open(path)


@pytest.mark.parametrize(
    ("prompts", "bad"),
    [
        ([(0, 2), (5, 9)], None),
        ([(0, 5), (5, 12)], None),
        ([(1, 2), (2, 5)], None),
        ([(0, 6)], (0, 6)),
        ([(5, 13)], (5, 13)),
        ([(3, 3)], (3, 3)),
        ([(-1, 2)], (-1, 2)),
        ([(1, 3), (2, 4)], (2, 4)),
        ([(6, 8), (0, 2)], (0, 2)),
    ],
)
def test_prompts_follow_each_other_within_sequences(tmp_path, prompts, bad):
    """The sequences are [0, 5) and [5, 12)."""
    header = Header(model=SHAPE, sequence_starts=(0, 5), prompts=prompts)
    if bad is None:
        recorded._check_prompts(header, 12, tmp_path)
    else:
        with pytest.raises(InputError, match=rf"prompts: \[{bad[0]}, {bad[1]}\] must begin after the one before"):
            recorded._check_prompts(header, 12, tmp_path)


def test_sequences_and_the_longest_of_them(tiny_trace):
    trace = tiny_trace(starts=(0, 2, 9))
    assert sequences((0, 2, 9), 12) == [(0, 2), (2, 9), (9, 12)]
    assert [trace.longest_sequence(tokens) for tokens in (None, 12, 100, 9, 5, 3, 2, 1)] == [7, 7, 7, 7, 3, 2, 2, 1]


def test_arrays_are_read_only_and_one_token_is_one_row(tiny_trace):
    acts = tiny_trace(dtype="int8").layer(1)
    for name in (*TENSORS, "gate", "glu"):
        assert not getattr(acts, name).flags.writeable
    one = acts.at(3)
    assert one.glu == pytest.approx(acts.glu[3])
    assert (one.mlp_input.shape, one.layer) == ((16,), 1)


def test_equal_traces_are_equal_bytes_with_sorted_metadata(tmp_path):
    header = Header(model=SHAPE, source={"b": 1, "a": "ä"})
    paths = [tmp_path / f"{name}.safetensors" for name in "xy"]
    for path in paths:
        write_trace(path, header, activations())
    assert paths[0].read_bytes() == paths[1].read_bytes()
    content = paths[0].read_bytes()[8:2000]
    places = [content.index(name) for name in (b'"activation"', b'"format"', b'"model"', b'"sequence_starts"')]
    assert places == sorted(places)
    assert Trace.open(paths[0]).header == header
