"""Traces of routing: what is written comes back, and what no router gives is one line."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_mixture
from safetensors import safe_open
from safetensors.numpy import save_file
from tiny_mixture import SHAPE, chosen, routing, shape

from dipsim.basics.errors import InputError
from dipsim.workload import Trace
from dipsim.workload.recorded_routing import checked_routing
from dipsim.workload.routing import NOT_ROUTED, Routing


def changed(tmp_path, change, kind="ids"):
    """A trace with its tensors changed in place."""
    path = tmp_path / "t.safetensors"
    tiny_mixture.write(path, kind=kind, tokens=6)
    with safe_open(path, framework="np") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize("kind", ["ids", "bare", "logits"])
def test_what_is_written_comes_back(tmp_path, kind):
    of = shape(dense_layers=(1,), num_experts=7)
    layers = routing(of, tokens=9, seed=4, kind=kind)
    trace = tiny_mixture.write(tmp_path / "t.safetensors", of=of, layers=layers, prompts=((0, 3), (5, 7)))
    assert (trace.tokens, trace.layers, trace.prompts) == (9, [0, 2], ((0, 3), (5, 7)))
    assert trace.shape == of
    for index, wrote in zip((0, 2), layers, strict=True):
        read = trace.layer(index, 5)
        assert read.layer == index
        assert (read.preference == wrote.preference[:5]).all()
        if kind != "bare":
            assert read.weights == pytest.approx(wrote.weights[:5], rel=1e-6)
    with pytest.raises(InputError, match="layer 1: has no mixture of experts"):
        trace.layer(1)
    again = tmp_path / "again.safetensors"
    tiny_mixture.write(again, of=of, layers=layers, prompts=((0, 3), (5, 7)))
    assert again.read_bytes() == trace.path.read_bytes()


def guessing(of, kind="ids", tokens=6):
    """Routing whose layers have logits of the next one's router, but for the last."""
    layers = routing(of, tokens=tokens, kind=kind)
    following = [layer.recorded_logits for layer in routing(of, tokens=tokens, kind="logits", seed=1)]
    return [
        *(replace(layer, next_layer=values) for layer, values in zip(layers[:-1], following[1:], strict=True)),
        layers[-1],
    ]


@pytest.mark.parametrize("kind", ["ids", "bare", "logits"])
def test_the_next_routers_logits_come_back(tmp_path, kind):
    """Layer 1 is dense, so layer 0 has those of layer 2."""
    of = shape(dense_layers=(1,))
    layers = guessing(of, kind)
    trace = tiny_mixture.write(tmp_path / "t.safetensors", of=of, layers=layers)
    read = trace.layer(0, 4)
    assert (read.next_layer.dtype, read.next_layer.flags.writeable) == (np.float32, False)
    assert read.next_layer.tolist() == layers[0].next_layer[:4].tolist()
    assert read.at(2).next_layer.tolist() == layers[0].next_layer[2:3].tolist()
    assert (read.preference == layers[0].preference[:4]).all()
    assert trace.layer(2).next_layer is None
    assert trace.layer(2).at(2).next_layer is None


def test_logits_in_float16_are_read_as_float32(tmp_path):
    values = np.float16(np.linspace(-3, 3, 48).reshape(6, 8))
    path = changed(tmp_path, lambda t: t.update({f"layers.{layer}.next_layer": values for layer in (0, 1)}))
    for layer in (0, 1):
        read = Trace.open(path).layer(layer).next_layer
        assert read.dtype == np.float32
        assert read.tolist() == values.tolist()


@pytest.mark.parametrize("kind", ["ids", "logits"])
def test_a_trace_without_them_has_the_tensors_it_always_had(tmp_path, kind):
    trace = tiny_mixture.write(tmp_path / "t.safetensors", kind=kind)
    assert [trace.layer(index).next_layer for index in range(3)] == [None] * 3
    names = {"ids": ("experts", "expert_weights"), "logits": ("router_logits",)}[kind]
    with safe_open(trace.path, framework="np") as file:
        assert set(file.keys()) == {f"layers.{index}.{name}" for index in range(3) for name in names}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({0: None}, "layers.0.next_layer: is missing, but other layers have it; record the trace again"),
        ({2: np.ones((6, 8), np.float32)}, "layers.2.next_layer: there is no layer after the last; leave it out"),
        ({1: np.ones((6, 2), np.float32)}, r"layers.1.next_layer: has shape \[6, 2\]; \[6, 8\] is expected"),
        ({1: np.ones((5, 8), np.float32)}, r"layers.1.next_layer: has shape \[5, 8\]; \[6, 8\] is expected"),
        ({1: np.ones((6, 8), np.int8)}, "layers.1.next_layer: dtype I8 is not one of F16, F32"),
        ({1: np.diag([np.nan] * 8)[2:].astype(np.float16)}, "layers.1.next_layer: token 0: NaN or infinite; import or"),
    ],
)
def test_logits_that_no_next_router_gives_are_one_line(tmp_path, change, complaint):
    def spoil(tensors):
        tensors |= {f"layers.{layer}.next_layer": np.ones((6, 8), np.float16) for layer in (0, 1)}
        for layer, values in change.items():
            tensors.pop(f"layers.{layer}.next_layer", None)
            if values is not None:
                tensors[f"layers.{layer}.next_layer"] = values

    path = changed(tmp_path, spoil)
    with pytest.raises(InputError, match=complaint) as error:
        Trace.open(path).layer(1)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_only_logits_that_can_be_read_again_are_written(tmp_path):
    path = tmp_path / "t.safetensors"
    first, second, last = guessing(SHAPE)
    for layers, complaint in (
        ([first, replace(second, next_layer=None), last], "layers.1.next_layer: is missing"),
        ([first, second, replace(last, next_layer=first.next_layer)], "layers.2.next_layer: there is no layer after"),
        (
            [first, replace(second, next_layer=np.full((6, 8), np.inf, np.float32)), last],
            "layers.1.next_layer: token 0: NaN or infinite",
        ),
    ):
        with pytest.raises(InputError, match=complaint):
            tiny_mixture.write(path, layers=layers)
    assert not list(tmp_path.iterdir())


def test_the_ranking_of_ids_is_their_order():
    layer = chosen([3, 1], [0, 7])
    assert layer.preference.tolist() == [[0, 1, 0, 2, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0, 1]]
    assert layer.routed.all()


def test_more_than_255_experts_take_wider_ids(tmp_path):
    of = shape(num_experts=300)
    layers = [chosen([299, 256], [0, 255], experts=300)] * 3
    trace = tiny_mixture.write(tmp_path / "t.safetensors", of=of, layers=layers)
    assert trace.layer(2).ids.tolist() == [[299, 256], [0, 255]]


def test_a_token_that_a_layer_did_not_compute_is_marked(tmp_path):
    ids = np.array([[NOT_ROUTED] * 2, [4, 2]])
    layers = [Routing(8, 2, ids=ids, recorded_weights=np.array([[0.0, 0], [0.75, 0.25]]))] * 3
    trace = tiny_mixture.write(tmp_path / "t.safetensors", layers=layers, prompts=((0, 1),))
    read = trace.layer(0)
    assert read.routed.tolist() == [False, True]
    assert read.preference[0].sum() == read.weights[0].sum() == 0
    assert read.weights[1, [4, 2]].tolist() == [0.75, 0.25]


def _set(name, row, values):
    def change(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name][row] = values

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_set("layers.1.experts", 3, [2, 9]), r"layers.1.experts: token 3: \[2, 9\]: experts are 0 to 7"),
        (_set("layers.1.experts", 3, [2, 255]), r"layers.1.experts: token 3: \[2, 255\]: experts are 0 to 7"),
        (_set("layers.1.experts", 3, [8, 2]), r"layers.1.experts: token 3: \[8, 2\]: experts are 0 to 7"),
        (_set("layers.2.experts", 0, [5, 5]), r"layers.2.experts: token 0: \[5, 5\]: an expert is there twice"),
        (_set("layers.0.expert_weights", 2, [0.5, -0.5]), "layers.0.expert_weights: token 2: must be 0 or more"),
        (
            _set("layers.0.expert_weights", 2, [0, 0]),
            "layers.0.expert_weights: token 2: must be 0 or more, and not all",
        ),
        (_set("layers.0.expert_weights", 1, [np.nan, 1]), "layers.0.expert_weights: token 1"),
    ],
)
def test_values_that_no_router_gives_are_one_line(tmp_path, change, complaint):
    trace = Trace.open(changed(tmp_path, change))
    with pytest.raises(InputError, match=complaint) as error:
        [trace.layer(index) for index in trace.layers]
    assert "\n" not in str(error.value)


def test_a_negative_expert_beside_a_good_one_is_one_line():
    with pytest.raises(InputError, match=r"token 1: \[-1, 3\]: experts are 0 to 7"):
        checked_routing(None, np.array([[0, 1], [-1, 3]]), None, 0, SHAPE, "t")


def test_one_repeated_expert_of_three_is_one_line():
    ids = np.array([[0, 1, 2], [5, 3, 5]])
    with pytest.raises(InputError, match=r"token 1: \[5, 3, 5\]: an expert is there twice"):
        checked_routing(None, ids, None, 0, shape(num_experts_per_tok=3), "t")


def test_logits_and_experts_that_disagree_are_one_line(tmp_path):
    """The second largest logit of token 4 is not among its experts."""

    def add(tensors):
        logits = tensors["layers.1.router_logits"]
        ids = np.argsort(-logits, axis=1)[:, :2].astype(np.uint8)
        ids[4, 1] = np.argsort(-logits[4])[2]
        tensors["layers.1.experts"] = ids

    trace = Trace.open(changed(tmp_path, add, "logits"))
    assert trace.layer(0).logits.shape == (6, 8)
    with pytest.raises(InputError, match=r"layers.1: token 4: experts .* are not those of the largest router_logits"):
        trace.layer(1)


def test_a_logit_that_is_no_number_is_one_line(tmp_path):
    trace = Trace.open(changed(tmp_path, _set("layers.0.router_logits", 5, np.inf), "logits"))
    with pytest.raises(InputError, match=r"layers.0.router_logits: token 5: NaN or infinite"):
        trace.layer(0)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop("layers.1.experts"), "layers.1: has neither router_logits nor experts"),
        (lambda t: t.update({"layers.2.experts": t["layers.2.experts"][:4]}), r"layers.2.experts: has shape \[4, 2\]"),
        (
            lambda t: t.update({"layers.2.experts": t["layers.2.experts"][:, :1].copy()}),
            r"has shape \[6, 1\]; \[6, 2\]",
        ),
        (lambda t: t.update({"layers.0.experts": t["layers.0.experts"].astype(np.float32)}), "dtype F32 is not one of"),
    ],
)
def test_tensors_that_are_missing_or_misshapen_are_one_line(tmp_path, change, complaint):
    with pytest.raises(InputError, match=complaint):
        Trace.open(changed(tmp_path, change))


@pytest.mark.parametrize(
    "prompts", [((0, 0),), ((3, 2),), ((0, 13),), ((0, 4), (2, 6)), ((4, 6), (0, 2)), ((4, 8),)], ids=str
)
def test_prompts_that_are_no_stretches_of_a_sequence_are_one_line(tmp_path, prompts):
    with pytest.raises(InputError, match=r"prompts: .* must begin after the one before and lie within a sequence"):
        tiny_mixture.write(tmp_path / "t.safetensors", starts=(0, 6), prompts=prompts)


@pytest.mark.parametrize(
    ("mixture", "complaint"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok: 9 of 8 experts"),
        ({"dense_layers": (2, 1)}, "dense_layers: must rise"),
        ({"dense_layers": (3,)}, "dense_layers: 3 is not one of the 3 layers"),
        ({"dense_layers": (0, 1, 2)}, "no layer is left for a mixture"),
        ({"expert_bytes": (1, 2)}, "expert_bytes: 2 sizes for 3 layers"),
        ({"expert_bytes": (1, 0, 2)}, "expert_bytes: missing for layer 1"),
        ({"expert_tensors": 4}, "expert_tensors"),
    ],
)
def test_impossible_mixtures_are_refused(mixture, complaint):
    with pytest.raises(ValueError, match=complaint):
        shape(**mixture)


def test_fewer_layers_than_the_model_has_are_not_written(tmp_path):
    with pytest.raises(InputError, match="the routing of 2 layers for a model with 3 mixtures"):
        tiny_mixture.write(tmp_path / "t.safetensors", layers=routing(tokens=4)[:2])
    assert not list(tmp_path.iterdir())
    assert SHAPE.experts.num_experts == 8
