"""Importers: what they make of files written here by hand, and the line that a bad file is refused with."""

import json

import numpy as np
import pytest

from dipsim.basics.errors import InputError
from dipsim.workload import Trace
from dipsim.workload.importers import IMPORTERS, import_trace, open_shape
from dipsim.workload.importers.sizes import GGUF
from dipsim.workload.recorded import write_routing
from dipsim.workload.routing import NOT_ROUTED
from dipsim.workload.shape import BitWidths, ModelShape

SHAPE = ModelShape(
    name="tiny",
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=32,
    mixture={"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 4, "dense_layers": (0,)},
)

HEADER = """# route_trace v1
# model=/data/My Model-Q4.gguf arch=qwen3moe n_layer=3 n_expert=8 n_expert_used=2
# layer=0 expert_bytes=0 dense_bytes=900
# layer=1 expert_bytes=1000 dense_bytes=300
# layer=2 expert_bytes=2000 dense_bytes=400
"""
COLUMNS = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes,dropped\n"
ROWS = """0,0,0,1,0,5,0.75,0,1000,0
0,0,0,1,1,2,0.25,0,1000,0
0,0,1,1,0,7,0.5,0,1000,0
0,0,1,1,1,0,0.5,0,1000,0
0,0,1,2,0,3,0.625,0,2000,0
0,0,1,2,1,4,0.375,0,2000,0
0,1,2,1,0,1,1,0,1000,0
0,1,2,1,1,6,0.125,0,1000,0
0,1,2,2,0,6,0.5,0,2000,0
0,1,2,2,1,3,0.25,1,0,0
1,0,3,1,0,2,0.5,1,0,0
1,0,3,1,1,3,0.25,0,1000,0
1,0,3,2,0,0,0.5,0,2000,0
1,0,3,2,1,1,0.25,0,2000,0
1,1,4,1,0,4,0.5,0,1000,0
1,1,4,1,1,5,0.25,0,1000,0
1,1,4,2,0,7,0.5,0,2000,0
1,1,4,2,1,6,0.25,0,2000,0
"""
ROUTE = HEADER + COLUMNS + ROWS
COLIBRI = """0 0 1 5:0.7500 2:0.2500
0 1 1 7:0.5000 0:0.5000
1 0 2 3:0.6250 4:0.3750
1 1 2 4:1.0000 5:0.0000
2 0 1 1:0.5000 6:0.1250
3 0 2 6:0.5000 3:0.2500
"""
WARP = [[[1, 5, 7], [0, 2, 3]], [[2, 5, 6], [1, 2, 3]]]


@pytest.fixture
def bring(tmp_path):
    """Writes a file of a format and imports it."""

    def call(format, content, **options):  # noqa: A002
        path = tmp_path / "recorded.txt"
        if isinstance(content, np.ndarray):
            path = tmp_path / "recorded.npy"
            np.save(path, content)
        else:
            path.write_text(content)
        return import_trace(format, path, **options)

    return call


def warp(tokens, first=1):
    return "".join(json.dumps({"tok": first + i, "layers": layers}) + "\n" for i, layers in enumerate(tokens))


def test_a_file_is_a_format():
    assert sorted(IMPORTERS) == ["bigmoeonedge", "colibri", "vllm", "warp"]


def test_bigmoeonedge(bring):
    """Two turns, each with a prompt; the last layer leaves out all but a prompt's last token; layer 0 is dense."""
    header, (one, two) = bring("bigmoeonedge", ROUTE)
    assert (one.layer, two.layer, one.experts, one.k) == (1, 2, 8, 2)
    assert one.ids.tolist() == [[5, 2], [7, 0], [1, 6], [2, 3], [4, 5]]
    assert two.ids.tolist() == [[NOT_ROUTED, NOT_ROUTED], [3, 4], [6, 3], [0, 1], [7, 6]]
    assert one.recorded_weights.tolist() == [[0.75, 0.25], [0.5, 0.5], [1, 0.125], [0.5, 0.25], [0.5, 0.25]]
    assert (one.recorded_weights.dtype, header.sequence_starts, header.prompts) == (np.float32, (0,), ((0, 2), (3, 4)))
    mixture = header.model.experts
    assert (mixture.num_experts, mixture.num_experts_per_tok, mixture.dense_layers) == (8, 2, (0,))
    assert (mixture.expert_bytes, mixture.dense_bytes) == ((0, 1000, 2000), (900, 300, 400))
    assert (mixture.expert_tensors, mixture.aligned, header.model.bits) == (3, False, GGUF)
    assert header.model.lm_head_bytes + header.model.kv_position_bytes < 8  # of sizes that are 1
    assert header.source["model"] == "My Model-Q4.gguf"
    assert "lm_head and KV cache are left out" in header.source["assumed"]
    assert (header.source["format"], header.source["file"], len(header.source["sha256"])) == (
        "bigmoeonedge", "recorded.txt", 64
    )  # fmt: skip


def test_bigmoeonedge_with_a_shape(bring):
    header, _ = bring("bigmoeonedge", ROUTE.replace("qwen3moe", "gemma4"), shape=SHAPE)
    assert (header.model.hidden_size, header.model.vocab_size, header.model.name) == (16, 32, "tiny")
    assert (header.model.experts.moe_intermediate_size, header.model.experts.num_experts_per_tok) == (4, 2)
    assert (header.model.experts.expert_tensors, header.model.bits) == (2, GGUF)
    assert "assumed" not in header.source
    own = SHAPE.model_copy(update={"bits": BitWidths(mlp=3)})
    header, _ = bring("bigmoeonedge", ROUTE, shape=ModelShape(**own.model_dump()), expert_bytes=1500.4)
    assert header.model.bits.mlp == 3
    assert (header.model.experts.expert_bytes, header.model.experts.dense_bytes) == ((0, 1500, 1500), (900, 300, 400))


def test_bigmoeonedge_columns_go_by_name_and_weights_may_be_unknown(bring):
    columns = COLUMNS.strip().split(",")
    turned = [dict(zip(columns, row.split(","), strict=True)) for row in ROWS.splitlines()]
    order = ["expert", "slot", "layer", "step", "phase", "turn"]
    lines = [",".join(order), *(",".join(row[name] for name in order) for row in turned)]
    _, (one, two) = bring("bigmoeonedge", HEADER + "\n".join(lines) + "\n")
    assert (one.ids.tolist()[0], two.ids.tolist()[4], one.recorded_weights) == ([5, 2], [7, 6], None)
    unknown = "\n".join(",".join("nan" if i == 6 else x for i, x in enumerate(row.split(","))) for row in ROWS.split())
    assert bring("bigmoeonedge", HEADER + COLUMNS + unknown + "\n")[1][0].recorded_weights is None


def test_bigmoeonedge_encodes_long_prompts_in_parts(bring):
    """Of a part that is not the last, the last layer computes no token at all."""
    cells = [(0, 0, 1, 5, 6), (0, 1, 1, 1, 2), (0, 0, 2, 3, 4), (0, 1, 2, 5, 6)]  # phase, step, layer, experts
    cells += [(0, 2, 1, 7, 0), (0, 2, 2, 1, 2), (1, 3, 1, 4, 5), (1, 3, 2, 0, 3)]

    def rows(cells):
        return "".join(
            f"0,{phase},{step},{layer},{slot},{expert},1,0,0,0\n"
            for phase, step, layer, *experts in cells
            for slot, expert in enumerate(experts)
        )

    header, (one, two) = bring("bigmoeonedge", HEADER + COLUMNS + rows(cells))
    assert header.prompts == ((0, 2), (2, 3))
    assert one.ids.tolist() == [[5, 6], [1, 2], [7, 0], [4, 5]]
    assert two.ids.tolist() == [[3, 4], [5, 6], [1, 2], [0, 3]]
    header, (_, two) = bring("bigmoeonedge", HEADER + COLUMNS + rows(cells[:3] + cells[4:]))
    assert two.ids.tolist() == [[3, 4], [NOT_ROUTED, NOT_ROUTED], [1, 2], [0, 3]]


def cut(text, line):
    """The text without one line, counted from 1."""
    lines = text.splitlines(keepends=True)
    return "".join(lines[: line - 1] + lines[line:])


def swap(text, line, old, new):
    """The text with a change in one line, counted from 1."""
    lines = text.splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    return "".join(lines)


BAD_ROUTES = [
    ("", "is empty"),
    ("\n\n", "is empty"),
    (COLUMNS + ROWS, "has no line `# model="),
    (HEADER, "has no rows"),
    (HEADER + COLUMNS, "has no rows"),
    (cut(ROUTE, 4), "layer 1: missing expert bytes; the header needs a line `# layer=1"),
    (swap(ROUTE, 4, "=1000", "=0"), "layer 1: missing expert bytes, which the header says are 0; give --expert-bytes"),
    (swap(ROUTE, 5, "layer=2", "layer=3"), "# layer=3: layers are 0 to 2"),
    (swap(ROUTE, 6, "slot,", ""), "line 6: column slot is missing"),
    (swap(ROUTE, 8, ",1,2,", ",1,8,"), "line 8: expert 8: experts are 0 to 7"),
    (swap(ROUTE, 8, ",1,2,", ",1,5,"), "line 8: expert 5 is there twice"),
    (swap(ROUTE, 8, ",1,2,", ",1,x,"), "line 8: expert 'x': must be a whole number"),
    (swap(ROUTE, 8, ",1,2,", ",1,-1,"), "line 8: expert '-1': must be a whole number"),
    (swap(ROUTE, 8, ",1,2,", ",1,99999999999,"), "line 8: expert '99999999999': must be a whole number"),
    (swap(ROUTE, 9, "0.5", "half"), "line 9: weight 'half': must be a number"),
    (swap(ROUTE, 9, "0.5", "1e99"), "line 9: weight '1e99': must be a number up to"),
    (swap(ROUTE, 9, "0.5", "-0.5"), "line 9: weight -0.5: must be 0 or more"),
    (swap(ROUTE, 9, "0.5", "nan"), "line 9: weight nan: must be 0 or more"),
    (swap(swap(ROUTE, 9, "0.5", "0"), 10, "0.5", "0"), "line 9: the weights of a token are all 0"),
    (swap(ROUTE, 11, "1,2,0", "1,3,0"), "line 11: layer 3: layers are 0 to 2"),
    (swap(ROUTE, 11, "0,0,1", "0,2,1"), "line 11: phase 2: must be 0"),
    (cut(ROUTE, 10), "line 9: layer 1 of step 1 has 1 of 2 slots"),
    (cut(ROUTE, 9), "line 9: slot 1 where 0 is expected"),
    (cut(cut(ROUTE, 15), 15), "line 14: layer 2 has 0 of 1 tokens"),
    (cut(cut(ROUTE, 9), 9), "line 10: layer 2 has 1 of 1 tokens from 0 on"),
    (cut(cut(ROUTE, 13), 13), "line 14: layer 1 has 0 of 1 tokens"),
    (ROUTE.replace("\n0,1,2,", "\n0,1,3,"), "line 13: step 3 where 2 is expected"),
    (ROUTE.replace("\n0,0,1,1,", "\n0,0,2,1,").replace("\n0,1,2", "\n0,1,3"), "line 9: token 2 where 1 is expected"),
    (ROUTE.replace("\n1,0,3,", "\n0,0,9,"), "line 17: step 9 where 3 is expected"),
    (ROUTE + "0,1,5,1,0,1,1,0,0,0\n0,1,5,1,1,2,1,0,0,0\n", "line 25: turn 0 after 1"),
    (ROUTE[:-1], "line 24: does not end, so the file is truncated"),
    (ROUTE[:-10] + "\n", "line 24: has 7 of 10 fields; the file is truncated"),
]


@pytest.mark.parametrize(("text", "message"), BAD_ROUTES)
def test_bad_routes_name_their_line(bring, text, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as error:
        bring("bigmoeonedge", text)
    assert "recorded.txt: " in str(error.value)
    assert "\n" not in str(error.value)


def test_colibri(bring):
    """Rows of one call passed a layer together; a batch ends where layers fall. The layers without lines are dense."""
    header, (one, two) = bring("colibri", COLIBRI, shape=SHAPE)
    assert one.ids.tolist() == [[5, 2], [7, 0], [1, 6]]
    assert two.ids.tolist() == [[3, 4], [4, 5], [6, 3]]
    assert two.recorded_weights.tolist() == [[0.625, 0.375], [1, 0], [0.5, 0.25]]
    assert (header.prompts, one.layer, two.layer) == (((0, 2),), 1, 2)
    assert header.source["assumed"] == "experts of 4 bits a weight (give --expert-bytes for others)"
    header, _ = bring("colibri", COLIBRI, expert_bytes=3.2e6)
    mixture = header.model.experts
    assert (mixture.num_experts, mixture.dense_layers, header.model.num_hidden_layers) == (8, (0,), 3)
    assert (mixture.expert_bytes, mixture.dense_bytes) == ((0, 3_200_000, 3_200_000), (0, 0, 0))
    assert "8 experts, one more than the largest number" in header.source["assumed"]
    assert "attention, lm_head and KV cache are left out" in header.source["assumed"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (COLIBRI[:-1], "line 6: does not end"),
        (COLIBRI + "4 0 1\n", "line 7: 3 fields"),
        (swap(COLIBRI, 2, "7:0.5000", "7"), "line 2: '7': id:gate is expected"),
        (swap(COLIBRI, 2, "0 1 1", "0 1 99999"), "line 2: layer '99999': must be a whole number from 0 to 10,000"),
        (swap(COLIBRI, 2, "7:", "x:"), "line 2: expert 'x': must be a whole number"),
        (swap(COLIBRI, 2, "0.5000", "much"), "line 2: gate 'much': must be a number"),
        (swap(COLIBRI, 2, "7:", "8:"), "line 2: expert 8: experts are 0 to 7"),
        (swap(COLIBRI, 2, "7:", "0:"), "line 2: expert 0 is there twice"),
        (swap(COLIBRI, 5, " 6:0.1250", ""), "line 5: 1 experts, 2 in the line before; record it without TOPP"),
        (swap(COLIBRI, 6, "3 0 2", "4 0 2"), "line 6: call 4 after 2"),
        (swap(COLIBRI, 2, "0 1 1", "0 1 2"), "line 2: layer 2 in a call of layer 1"),
        (swap(COLIBRI, 1, "0 0 1", "0 1 1"), "line 1: row 1 where 0 is expected"),
        (swap(COLIBRI, 2, "0 1 1", "0 2 1"), "line 2: token 2 where 1 is expected"),
        (cut(COLIBRI, 4), "line 3: layer 2 has 1 of 2 tokens"),
        (cut(COLIBRI, 6), "line 5: layer 2 has 0 of 1 tokens"),
        (COLIBRI.replace("1 0 2", "1 0 3").replace("1 1 2", "1 1 3").replace("3 0 2", "3 0 3"),
         "line 3: layer 3: layers are 0 to 2"),
    ],
)  # fmt: skip
def test_bad_colibri_lines(bring, text, message):
    with pytest.raises(InputError, match=message):
        bring("colibri", text, shape=SHAPE)


def test_warp(bring):
    header, (one, two) = bring("warp", warp(WARP), shape=SHAPE)
    assert (one.ids.tolist(), two.ids.tolist()) == ([[1, 5, 7], [2, 5, 6]], [[0, 2, 3], [1, 2, 3]])
    assert (one.layer, one.recorded_weights, header.prompts) == (1, None, ())
    assert (header.model.experts.num_experts_per_tok, header.model.experts.num_experts) == (3, 8)
    assert "experts stand in rising order" in header.source["assumed"]
    whole = [[[0, 1, 2], *layers] for layers in WARP]  # a row for the dense layer too, which is passed over
    assert bring("warp", warp(whole), shape=SHAPE)[1][0].ids.tolist() == one.ids.tolist()
    assert bring("warp", warp(WARP)[:-1], expert_bytes=100)[0].model.experts.expert_bytes == (100, 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (warp(WARP)[:-5], "line 2: is not JSON; the file is truncated"),
        ("[1]\n", r'line 1: \{"tok": number'),
        ('{"tok": 1}\n', r'line 1: \{"tok": number'),
        ('{"tok": true, "layers": [[1]]}\n', r'line 1: \{"tok": number'),
        (warp(WARP) + warp(WARP[:1], 4), "line 3: tok 4 where 3 is expected"),
        (warp([WARP[0], WARP[1][:1]]), "line 2: 1 layers where line 1 has 2"),
        (warp([WARP[0], [[2, 5, 6], [1, 2]]]), "line 2: layer 1: 2 experts where line 1 has 3"),
        (warp([[[], []]]), "line 1: layer 0: 0 experts"),
        (warp([WARP[0], [[2, 5, 6], [1, 2.5, 3]]]), "line 2: layer 1: expert 2.5: must be a whole number"),
        (warp([WARP[0], [[2, 5, -6], [1, 2, 3]]]), "line 2: layer 0: expert -6: must be a whole number"),
        (warp([WARP[0], [[2, 5, 8], [1, 2, 3]]]), "line 2: expert 8: experts are 0 to 7"),
        (warp([WARP[0], [[2, 5, 5], [1, 2, 3]]]), "line 2: expert 5 is there twice"),
        (warp([[[1], [2], [3], [4]]]), "4 layers with 8 experts, but --shape has 2 with 8"),
    ],
)
def test_bad_warp_lines(bring, text, message):
    with pytest.raises(InputError, match=message):
        bring("warp", text, shape=SHAPE)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.int32, np.uint16])
def test_vllm(bring, dtype):
    array = np.array([[[5, 2, 1], [0, 7, 3]], [[4, 1, 0], [6, 2, 5]]], dtype=dtype)
    header, (one, two) = bring("vllm", array, shape=SHAPE)
    assert (one.ids.tolist(), two.ids.tolist()) == ([[5, 2, 1], [4, 1, 0]], [[0, 7, 3], [6, 2, 5]])
    assert (one.ids.dtype, one.recorded_weights, header.prompts) == (np.int64, None, ())
    padded = np.concatenate([np.zeros((2, 1, 3), dtype), array], axis=1)  # some versions have all layers
    assert bring("vllm", padded, shape=SHAPE)[1][1].ids.tolist() == two.ids.tolist()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3), np.int16), r"int16 \[2, 3\]; an array of integers"),
        (np.zeros((0, 2, 3), np.int16), r"int16 \[0, 2, 3\]; an array of integers"),
        (np.zeros((2, 2, 3), np.float32), r"float32 \[2, 2, 3\]; an array of integers"),
        (
            np.array([[[0, 1], [2, 3]], [[0, 1], [-1, -1]]]),
            "token 1: a negative expert, which vLLM writes for a token of",
        ),
        (np.array([[[0, 1], [2, 3]], [[0, 1], [2, 8]]]), "token 1, layer 2: expert 8: experts are 0 to 7"),
        (np.array([[[0, 1], [2, 3]], [[4, 4], [2, 7]]]), "token 1, layer 1: expert 4 is there twice"),
    ],
)
def test_bad_vllm_arrays(bring, array, message):
    with pytest.raises(InputError, match=message):
        bring("vllm", array, shape=SHAPE)


def test_files_that_are_no_array(tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        import_trace("vllm", path)
    path.write_text("0,1,2")
    with pytest.raises(InputError, match="cannot be read"):
        import_trace("vllm", path)
    np.save(path, np.zeros((9, 2, 3), np.int16))
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(InputError, match="cannot be read"):
        import_trace("vllm", path)
    np.savez(tmp_path / "x.npz", np.zeros(3))
    with pytest.raises(InputError, match="holds several arrays"):
        import_trace("vllm", tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"none\.npy: no such file"):
        import_trace("vllm", tmp_path / "none.npy")
    with pytest.raises(InputError, match="format: 'gguf' is not one of bigmoeonedge, colibri, vllm, warp"):
        import_trace("gguf", path)


def test_sizes_must_come_from_somewhere(bring, tmp_path):
    for name, content in (("warp", warp(WARP)), ("colibri", COLIBRI), ("vllm", np.array([[[0, 1], [1, 2]]]))):
        with pytest.raises(
            InputError, match="missing expert bytes, which the file does not tell; give --shape or --exp"
        ):
            bring(name, content)
    path = tmp_path / "config.json"
    dense = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 1,
        "num_hidden_layers": 2,
        "vocab_size": 8,
    }
    path.write_text(json.dumps(dense))
    with pytest.raises(InputError, match=r"config\.json: the model has no experts"):
        open_shape(str(path))
    with pytest.raises(InputError, match="smollm2-135m: the model has no experts"):
        open_shape("smollm2-135m")
    path.write_text(json.dumps(dense | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}))
    assert open_shape(str(path)).experts.num_experts == 8
    assert open_shape("qwen3-30b-a3b").experts.num_experts == 128
    with pytest.raises(InputError, match="2 layers with 8 experts, but --shape has 48 with 128"):
        bring("bigmoeonedge", ROUTE, shape=open_shape("qwen3-30b-a3b"))


def test_what_is_written_reads_back(bring, tmp_path):
    for name, content in (("bigmoeonedge", ROUTE), ("colibri", COLIBRI)):
        header, layers = bring(name, content, expert_bytes=5000)
        path = tmp_path / "out.safetensors"
        write_routing(path, header, layers)
        trace = Trace.open(path)
        assert (trace.header, trace.layers, trace.tokens) == (header, [1, 2], len(layers[0].ids))
        for routing in layers:
            read = trace.layer(routing.layer)
            assert read.ids.tolist() == routing.ids.tolist()
            assert read.recorded_weights.tolist() == routing.recorded_weights.tolist()


QWEN = {
    0: (49, 19, 58, 29, 16, 70),
    1: (66, 105, 125, 24, 86, 122),
}  # layer 0 of the first two tokens of a prompt of 28
GEMMA = {0: (79, 102, 114, 19, 54, 46), 1: (102, 54, 1, 6, 81, 83)}
QWEN_WEIGHTS = (0.221297, 0.191844, 0.190793, 0.147117, 0.136741, 0.112209)
GEMMA_WEIGHTS = (0.425021, 0.358799, 0.0653988, 0.0509981, 0.0507713, 0.0490119)


@pytest.mark.parametrize(
    ("name", "arch", "tokens", "prompt", "spared", "first", "weights"),
    [
        ("qwen3-30b-a3b", "qwen3moe", 156, 28, 27, QWEN, QWEN_WEIGHTS),
        ("gemma-4-26b-a4b", "gemma4", 157, 29, 0, GEMMA, GEMMA_WEIGHTS),
    ],
)
def test_shipped_traces_of_a_phone_are_what_an_import_makes(bring, name, arch, tokens, prompt, spared, first, weights):
    """An excerpt of the file they come from: the first token, in all layers, and the second in the first layer."""
    shipped = Trace.open(name)
    mixture = shipped.shape.experts
    layers = shipped.shape.num_hidden_layers
    header = f"# model={shipped.header.source['model']} arch={arch} n_layer={layers} n_expert=128 n_expert_used=6\n"
    header += "".join(
        f"# layer={layer} expert_bytes={mixture.expert_bytes[layer]} dense_bytes={mixture.dense_bytes[layer]}\n"
        for layer in range(layers)
    )
    rows = "".join(
        f"0,0,{step},{layer},{slot},{expert},{weights[slot] if step == 0 else 1},0,0\n"
        for layer in range(layers)
        for step, ids in first.items()
        for slot, expert in enumerate(ids)
    )
    made, routed = bring("bigmoeonedge", header + COLUMNS.replace(",dropped", "") + rows)
    assert routed[0].ids.tolist() == shipped.layer(0, 2).ids.tolist()
    assert routed[0].recorded_weights[0].tolist() == shipped.layer(0, 1).recorded_weights[0].tolist()
    assert f"the sizes of the shipped {name}" in made.source["assumed"]
    assert made.model == shipped.shape
    assert (shipped.tokens, shipped.prompts) == (tokens, ((0, prompt),))
    last = shipped.layer(layers - 1)
    assert np.flatnonzero(~last.routed).tolist() == list(range(spared))
    assert "2d4f2b1" in shipped.header.source["from"]


def test_the_phones_working_sets():
    """MiB of the experts of one token, below which a recency cache hits nothing: 785 and 676, as its engine says."""
    assert round(Trace.open("qwen3-30b-a3b").shape.working_set_bytes / 2**20) == 785
    assert round(Trace.open("gemma-4-26b-a4b").shape.working_set_bytes / 2**20) == 676


def test_the_shipped_trace_of_olmoe_is_what_an_import_makes(bring):
    first = [
        [6, 8, 15, 23, 31, 37, 53, 63], [7, 16, 18, 24, 25, 29, 47, 60], [5, 9, 22, 24, 30, 40, 60, 63],
        [11, 15, 19, 45, 51, 54, 62, 63], [2, 17, 25, 41, 48, 55, 59, 63], [2, 13, 21, 29, 31, 41, 42, 55],
        [1, 23, 36, 38, 40, 49, 59, 62], [1, 12, 14, 17, 33, 35, 39, 45], [6, 7, 29, 32, 33, 44, 48, 60],
        [4, 6, 7, 8, 11, 20, 40, 42], [4, 6, 30, 38, 43, 46, 57, 59], [22, 27, 29, 33, 37, 51, 52, 56],
        [6, 9, 30, 38, 51, 54, 58, 59], [2, 5, 6, 7, 11, 45, 55, 62], [1, 9, 11, 12, 24, 36, 42, 60],
        [1, 3, 9, 29, 30, 52, 58, 60],
    ]  # fmt: skip
    shipped = Trace.open("olmoe-1b-7b")
    made, routed = bring("warp", warp([first]))
    assert made.model == shipped.shape
    for routing in routed:
        assert routing.ids.tolist() == shipped.layer(routing.layer, 1).ids.tolist() == [first[routing.layer]]
    assert (shipped.tokens, shipped.prompts, shipped.layer(0).recorded_weights) == (299, (), None)
    assert shipped.shape.working_set_bytes == 16 * 8 * 3 * 2048 * 1024 / 2
    assert "7f1fbba" in shipped.header.source["from"]


def test_the_command(cli_run, tmp_path):
    path, out = tmp_path / "r.csv", tmp_path / "mine.safetensors"
    path.write_text(ROUTE)
    status, said, err = cli_run("import", "bigmoeonedge", path, "--out", out, "--source", "a phone")
    assert (status, err) == (0, "")
    assert (
        "mine.safetensors: 5 tokens, 3 of them prompt, 2 layers with 8 experts, 2 a token, 24 kB of experts; " in said
    )
    assert said.endswith("(give --shape to add them)\n")
    trace = Trace.open(out)
    assert (trace.shape.name, trace.header.source["from"]) == ("mine", "a phone")
    assert cli_run("check", out)[1].endswith("ok, a trace of 5 tokens, 3 layers\n")
    again = ["import", "bigmoeonedge", path, "--out", out, "--shape", out, "--expert-bytes", "2 kB"]
    assert "; assumed" not in cli_run(*again)[1]
    assert Trace.open(out).shape.experts.expert_bytes == (0, 2000, 2000)
    for change, message in (
        (["--expert-bytes", "2"], "--expert-bytes: '2' has no unit"),
        (["--shape", "nothing"], "nothing: no such trace"),
        (["--out", tmp_path / "x.csv"], "a trace file must end in .safetensors"),
    ):
        status, _, err = cli_run(*again, *change)
        assert (status, message in err, err.count("\n")) == (2, True, 1)


def test_shipped_mixtures_are_listed(cli_run):
    status, said, _ = cli_run("list", "traces")
    rows = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert status == 0
    assert "48, 2048, 128 x 768" in rows["qwen3-30b-a3b"]
    assert "30, 2816, 128 x 704" in rows["gemma-4-26b-a4b"]
    assert "16, 2048, 64 x 1024" in rows["olmoe-1b-7b"]


def test_a_header_that_numpy_cannot_parse_is_one_line(tmp_path):
    """numpy reads it as Python, and raises what that raises."""
    path = tmp_path / "r.npy"
    np.save(path, np.zeros((1, 2, 2), np.int16))
    path.write_bytes(path.read_bytes().replace(b"'descr': '<i2'", b"'descr': ('<i2'"))
    with pytest.raises(InputError, match=r"r\.npy: cannot be read \(.*\); an array of integers"):
        import_trace("vllm", path, shape=SHAPE)


@pytest.mark.parametrize(
    ("format", "content"),
    [("colibri", COLIBRI.replace("0.7500", "7" * 5000 + "x")), ("bigmoeonedge", ROUTE.replace("0.75", "x" * 5000))],
)
def test_a_long_field_is_not_told_whole(bring, format, content):  # noqa: A002
    with pytest.raises(InputError) as error:
        bring(format, content)
    assert "line " in str(error.value)
    assert len(str(error.value)) < 500
