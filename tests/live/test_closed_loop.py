"""The closed loop on small random models: against token-by-token decoding, by hand, and through every policy."""

from dataclasses import replace
from inspect import signature

import numpy as np
import pandas as pd
import pytest
import yaml

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from oracles import flash  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from tiny_models import FAMILIES, SIZES, make, save  # noqa: E402

from dipsim.basics.errors import InputError  # noqa: E402
from dipsim.basics.fields import parse  # noqa: E402
from dipsim.gpu.tensors import tensor_masks  # noqa: E402
from dipsim.live import adapt as training  # noqa: E402
from dipsim.live.closed_loop import LiveActivations, replaced, sparsified  # noqa: E402
from dipsim.live.evaluate import evaluate  # noqa: E402
from dipsim.live.models import LoadedModel, load  # noqa: E402
from dipsim.live.perplexity import calibrate, measure, nll, quality  # noqa: E402
from dipsim.live.record import collect  # noqa: E402
from dipsim.live.sensitivity import learn_sensitivity  # noqa: E402
from dipsim.live.swiglu import find_mlps  # noqa: E402
from dipsim.live.text import read_tokens  # noqa: E402
from dipsim.live.train_predictor import train_predictor  # noqa: E402
from dipsim.planning.builder import PlanBuilder  # noqa: E402
from dipsim.planning.fetch_plan import Setting  # noqa: E402
from dipsim.planning.planner import plan  # noqa: E402
from dipsim.sparsity.plugins import load_policy  # noqa: E402
from dipsim.sparsity.policy import Group  # noqa: E402
from dipsim.sparsity.ranking import top_k  # noqa: E402
from dipsim.study.experiment import Experiment  # noqa: E402
from dipsim.workload import Trace  # noqa: E402
from dipsim.workload.recorded import write_trace  # noqa: E402
from dipsim.workload.shape import ModelShape  # noqa: E402
from dipsim.workload.trace import Header  # noqa: E402

COSTLY = flash(command=1e-7, bandwidth=1e9, latency=0, depth=32, overlap=1)  # a command costs 100 bytes
_PARAMETERS = signature(transformers.LlamaForCausalLM.forward).parameters
CACHE = "cache" if "cache" in _PARAMETERS else "past_key_values"  # its name in newer and older transformers
FIELDS = ("dram_static", "dram_hits", "flash_misses", "flash_gaps", "reads", "read_bytes", "flops")


def loaded(family="Llama", dtype=torch.float64):
    model = make(family).to(dtype)
    shape = ModelShape.from_config(model.config.to_dict(), name="tiny")
    return LoadedModel(model, None, shape, find_mlps(model), {})


def tokens(sequences=2, length=10):
    return torch.randint(2, SIZES["vocab_size"], (sequences, length), generator=torch.Generator().manual_seed(1))


def setting(name, shape, share=0.5, eviction="lfu", length=10, **parameters):
    return Setting(load_policy(name, **parameters), shape.static_bytes(length) + share * shape.mlp_bytes, eviction)


POLICIES = [
    ("dense", {}),
    ("magnitude", {"fraction": 0.5}),
    ("gate", {"fraction": 0.5}),
    ("up", {"fraction": 0.5}),
    ("dip", {"keep": 0.5}),
    ("dip-ca", {"keep": 0.5, "gamma": 0.3, "fixed_top_n": 2, "warmup": 4}),
    ("dip-ca-approx", {"keep": 0.5, "reach": 1.2}),
]


def equal_token_by_token(tiny, used):
    """Decode one token at a time with a KV cache, and whole sequences at once; return the plan, the same for both."""
    ids = tokens(sequences=1)
    at_once, stepwise = (PlanBuilder(tiny.shape, used, 10, (0,)) for _ in range(2))
    with torch.inference_mode():
        with sparsified(tiny.mlps, [at_once]):
            expected = tiny.model(ids, use_cache=False).logits
        with sparsified(tiny.mlps, [stepwise]):
            past, found = None, []
            for position in range(ids.shape[1]):
                out = tiny.model(ids[:, position : position + 1], use_cache=True, **{CACHE: past})
                past = out[CACHE]
                found.append(out.logits)
    assert torch.cat(found, dim=1).numpy() == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-11)
    at_once, stepwise = at_once.finish(), stepwise.finish()
    for field in FIELDS:
        assert (getattr(at_once, field) == getattr(stepwise, field)).all(), field
    return at_once


AWARE_OF_READS = [
    ("dip", {"keep": 0.6, "free": True}, "lfu"),
    ("dip-ca", {"keep": 0.6, "gamma": 0.4, "free": True}, "pinned"),
    ("worth", {"price": 40.0}, "pinned"),
]


@pytest.mark.parametrize(("name", "parameters", "eviction"), AWARE_OF_READS)
def test_masks_that_know_what_is_read_equal_token_by_token(name, parameters, eviction):
    tiny = loaded()
    used = replace(setting(name, tiny.shape, eviction=eviction, **parameters), flash=COSTLY)
    found = equal_token_by_token(tiny, used)
    assert 0 < found.flash_misses.sum() < 0.9 * 10 * tiny.shape.mlp_bytes
    assert found.dram_hits.sum() > 0


def best_subset(gains, run_cost):
    """The subset [N] of columns with these gains [N] whose sum, less a cost for each run, is largest: of all 2^N."""
    every = (np.arange(2 ** len(gains))[:, None] >> np.arange(len(gains)) & 1).astype(bool)
    begins = every & ~np.pad(every, ((0, 0), (1, 0)))[:, :-1]
    return every[np.argmax(every @ gains - run_cost * begins.sum(axis=1))]


def test_worth_by_trying_all_subsets():
    """One MLP, one token: what is pinned, and the unpinned columns whose share of the signal pays for reading them."""
    tiny = loaded()
    mlp, layer = tiny.mlps[0], tiny.model.model.layers[0].mlp
    x = torch.randn(1, 1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    priced = setting("worth", tiny.shape, share=0.75, eviction="pinned", length=1, price=80.0)
    making = PlanBuilder(tiny.shape, replace(priced, flash=COSTLY), 1, (0,))
    price = 80.0 / 1e6  # a share of the signal for each byte; a read costs 100 bytes more than its own

    def kept(values, pinned, matrices, column):
        gains = (values**2 / (values**2).sum()).detach().flatten()[pinned:].numpy()
        chosen = best_subset(gains - price * matrices * column, price * matrices * 100)
        return torch.tensor([True] * pinned + chosen.tolist())

    mask_in = kept(x, 24, 2, 32)
    glu = layer.act_fn(layer.gate_proj(x * mask_in)) * layer.up_proj(x * mask_in)
    mask_n = kept(glu, 48, 1, 16)
    with torch.inference_mode(), sparsified([mlp], [making]):
        assert torch.allclose(layer(x), layer.down_proj(glu * mask_n))
    finished = making.finish()
    assert finished.flops[0, finished.step.index("input")] == 2 * 2 * int(mask_in.sum()) * 64
    assert finished.flops[0, finished.step.index("neuron")] == 2 * int(mask_n.sum()) * 32
    assert 24 < mask_in.sum() < 32
    assert 48 < mask_n.sum() < 64


def test_sensitivity_is_the_mean_square_of_the_loss_by_each_value(tmp_path):
    """By finite differences: move one value of one token, and see what the sum of all losses does."""
    tiny, ids, path = loaded(), tokens(sequences=3, length=6), tmp_path / "s.safetensors"
    learn_sensitivity(tiny, ids, path)
    learned = load_file(path)
    assert {name: values.shape for name, values in learned.items()} == {
        f"layers.{layer}.{name}": (size,) for layer in range(3) for name, size in (("input", 32), ("neuron", 64))
    }
    assert all(parameter.requires_grad for parameter in tiny.model.parameters())

    def loss(sequence, position, name, column, move):
        def forward(x):
            acts = LiveActivations(tiny.mlps[1], x, 1)
            moved = (x if name == "input" else acts.glu).clone()
            moved[0, position, column] += move
            glu = LiveActivations(tiny.mlps[1], moved, 1).glu if name == "input" else moved
            return tiny.mlps[1].project("down_proj", glu)

        with torch.inference_mode(), replaced(tiny.mlps[1:2], [forward]):
            return nll(tiny, ids[sequence : sequence + 1]).sum()

    for name, column in (("input", 7), ("neuron", 40)):
        slopes = [
            (loss(s, t, name, column, 1e-3) - loss(s, t, name, column, -1e-3)) / 2e-3
            for s in range(3)
            for t in range(6)
        ]
        assert learned[f"layers.1.{name}"][column] == pytest.approx(np.mean(np.square(slopes)), rel=1e-3)


def test_a_layout_of_a_live_model_is_learned_from_a_trace(tmp_path):
    tiny, ids = loaded(dtype=torch.float32), tokens()
    path = tmp_path / "t.safetensors"
    write_trace(path, Header(model=tiny.shape, sequence_starts=(0, 10)), collect(tiny, ids.tolist()), "float32")
    used = replace(setting("magnitude", tiny.shape, share=0.9, eviction="pinned"), layout="popularity", flash=COSTLY)
    with pytest.raises(InputError, match="layout: popularity is learned from tokens that are not counted"):
        measure(tiny, ids, [used])
    learned = replace(used, calibration=str(path))
    _, (live,) = measure(tiny, ids, [learned])
    again = tmp_path / "again.safetensors"  # the same activations in a file that is not the calibration trace
    header = Header(model=tiny.shape, sequence_starts=(0, 10), source={"copy": 1})
    write_trace(again, header, collect(tiny, ids.tolist()), "float32")
    (recorded,) = plan(Trace.open(again), [learned])
    first = live.layer == 0
    for field in ("dram_hits", "flash_misses", "flash_gaps", "reads"):
        assert (getattr(live, field)[:, first] == getattr(recorded, field)[:, first]).all(), field


def test_worth_needs_the_sensitivities_of_this_model(tmp_path):
    tiny, path = loaded(), tmp_path / "s.safetensors"
    path.write_bytes(b"nothing")
    for name, complaint in ((str(path), "not a readable safetensors file"), ("nope", "no such sensitivity"),
                            ("smollm2-135m", "is of a model of other sizes")):  # fmt: skip
        with pytest.raises(InputError, match=complaint):
            PlanBuilder(tiny.shape, setting("worth", tiny.shape, eviction="pinned", sensitivity=name), 1, (0,))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "parameters"), POLICIES)
def test_layer_by_layer_equals_token_by_token_with_a_kv_cache(family, name, parameters):
    """Teacher forcing over whole sequences gives the logits, and the plan, of decoding one token at a time."""
    tiny = loaded(family)
    equal_token_by_token(tiny, setting(name, tiny.shape, **parameters))


def test_dip_by_hand():
    """One MLP, one token: pruned input into gate and up, their pruned product into down."""
    tiny = loaded()
    mlp, layer = tiny.mlps[0], tiny.model.model.layers[0].mlp
    x = torch.randn(1, 1, 32, dtype=torch.float64)
    used = setting("dip", tiny.shape, keep=0.5)
    shape_plan = PlanBuilder(tiny.shape, used, 1, (0,))
    inputs, neurons = shape_plan.groups
    kept = x * torch.from_numpy(top_k(np.abs(x.numpy()), inputs.k))
    glu = layer.act_fn(layer.gate_proj(kept)) * layer.up_proj(kept)
    expected = layer.down_proj(glu * torch.from_numpy(top_k(np.abs(glu.detach().numpy()), neurons.k)))
    with torch.inference_mode(), sparsified([mlp], [shape_plan]):
        assert torch.allclose(layer(x), expected)
    finished = shape_plan.finish()
    assert finished.flops[0, finished.step.index("input")] == 2 * 2 * inputs.k * 64


def test_keeping_everything_is_the_dense_model():
    tiny, ids = loaded(), tokens()
    with torch.inference_mode():
        dense = nll(tiny, ids)
    for name, parameters in (("dip", {"keep": 1}), ("magnitude", {"fraction": 1}), ("gate", {"fraction": 1})):
        losses, _ = measure(tiny, ids, [setting(name, tiny.shape, **parameters)])
        assert losses == pytest.approx(dense, rel=1e-12)
    assert quality(dense, dense).standard_error == 0
    assert quality(dense, dense).perplexity == pytest.approx(np.exp(dense.mean()))
    logits = tiny.model(ids).logits[:, :-1].log_softmax(-1)
    by_hand = -torch.gather(logits, 2, ids[:, 1:, None])[..., 0].detach().numpy()
    assert dense == pytest.approx(by_hand)


@pytest.mark.parametrize("name", ["magnitude", "gate", "up"])
def test_first_layer_sees_what_a_recorded_trace_holds(tmp_path, name):
    """Open and closed loop differ only by what pruning did to earlier layers; the first has none."""
    tiny, ids = loaded(dtype=torch.float32), tokens()
    path = tmp_path / "t.safetensors"
    write_trace(path, Header(model=tiny.shape, sequence_starts=(0, 10)), collect(tiny, ids.tolist()), "float32")
    used = setting(name, tiny.shape, share=0.9, fraction=0.4)
    (open_loop,) = plan(Trace.open(path), [used])
    _, (closed,) = measure(tiny, ids, [used])
    first = closed.layer == 0
    for field in FIELDS:
        assert (getattr(open_loop, field)[:, first] == getattr(closed, field)[:, first]).all(), field


def test_one_pass_serves_all_settings_of_a_blind_policy_and_refuses_several_of_an_aware_one():
    tiny, ids = loaded(), tokens()
    several = [setting("dip", tiny.shape, share, eviction) for share in (0.3, 0.6) for eviction in ("lru", "belady")]
    _, together = measure(tiny, ids, several)
    for used, shared in zip(several, together, strict=True):
        _, (alone,) = measure(tiny, ids, [used])
        assert (alone.dram_hits == shared.dram_hits).all()
    with pytest.raises(InputError, match="evaluate one setting at a time"):
        measure(tiny, ids, [setting("dip-ca", tiny.shape, share) for share in (0.3, 0.6)])


def test_thresholds_come_from_the_calibration_text():
    tiny, ids = loaded(), tokens()
    policy = load_policy("dip-threshold", keep=0.5)
    limits = calibrate(tiny, ids, policy)
    assert [sorted(layer) for layer in limits] == [["input", "neuron"]] * 3
    losses, (booked,) = measure(tiny, ids, [setting("dip-threshold", tiny.shape)], limits)
    read = (booked.dram_bytes + booked.flash_bytes)[:, booked.is_mlp].sum(axis=1)
    assert read.std() > 0
    stricter = [{name: 3 * limit for name, limit in layer.items()} for layer in limits]
    fewer, (less,) = measure(tiny, ids, [setting("dip-threshold", tiny.shape)], stricter)
    assert (less.dram_bytes + less.flash_bytes).sum() < (booked.dram_bytes + booked.flash_bytes).sum()
    assert not np.allclose(losses, fewer)


def test_torch_top_k_has_the_ties_of_numpy():
    scores = np.random.default_rng(0).integers(0, 4, (50, 12)).astype(np.float32)
    for k in range(14):
        assert (top_k(torch.from_numpy(scores), k).numpy() == top_k(scores, k)).all()
    group = Group("g", ("down_proj",), "neuron", 4, threshold=True)
    assert tensor_masks(group, torch.from_numpy(scores), 2.0).numpy().tolist() == (scores >= 2).tolist()
    assert abs(tensor_masks(group, torch.rand(100, 12)).float().sum(1).mean() - 4) < 0.05


def test_evaluate_runs_the_grid_and_pairs_with_dense():
    tiny, ids = loaded(), tokens()
    data = {"trace": "unused", "policies": ["dense", "dip", "dip-ca"]}
    data["sweep"] = {
        "dram": [{"mlp_fraction": 0.3}, {"mlp_fraction": 0.7}],
        "flash.read_bandwidth": ["1 GB/s", "2 GB/s"],
    }
    found = evaluate(tiny, ids, parse(Experiment, data, "exp"))
    assert len(found) == 2 * 2 * 3
    by = {(r.policy, round(r.plan.setting.dram_bytes), r.device.flash.read_bandwidth): r for _, r in found}
    assert len(by) == 12
    for (policy, size, bandwidth), result in by.items():
        assert (result.standard_error == 0) == (policy == "dense")
        if bandwidth == 1e9:
            assert by[policy, size, 2e9].tokens_per_s > result.tokens_per_s
            assert by[policy, size, 2e9].perplexity == result.perplexity
    assert len({r.perplexity for _, r in found if r.policy == "dip"}) == 1
    assert len({r.perplexity for _, r in found if r.policy == "dip-ca"}) == 2


def test_scores_of_the_live_model_are_checked_and_tokens_refused(tmp_path):
    tiny, ids = loaded(), tokens()
    plugin = tmp_path / "mine.py"
    head = "from dipsim import Group, Policy\nclass Mine(Policy):\n"
    head += " def groups(self, shape): return [Group('neuron', ('down_proj',), 'neuron', 3)]\n"
    for body in ("return acts.glu * float('nan')", "return acts.glu[..., :1]"):
        plugin.write_text(f"{head} def scores(self, group, acts): {body}\n")
        with pytest.raises(InputError, match="scores of group neuron must be numbers"):
            measure(tiny, ids, [setting(plugin, tiny.shape)])
    given = {"trace": "unused", "policies": ["dip"], "dram": "20 kB"}
    with pytest.raises(InputError, match="tokens: an evaluation takes its tokens from the text"):
        evaluate(tiny, ids, parse(Experiment, given | {"tokens": 4}, "exp"))
    tiny.model.config.logits_scaling = 8.0
    with pytest.raises(InputError, match="logits are scaled"):
        evaluate(tiny, ids, parse(Experiment, given, "exp"))


@pytest.mark.slow
def test_adapters_learn_and_serve(tmp_path, cli_run):
    folder = save(tmp_path / "model", make("Llama"))
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{(i * i) % 50}" for i in range(400)))
    adapter = tmp_path / "adapter"
    options = ["--model", folder, "--text", text, "--length", 16]
    status, out, err = cli_run("adapt", *options, "--steps", 60, "--batch", 4, "--rank", 4, "--learning-rate", 0.01,
                               "--set", "dip.keep=0.5", "--out", adapter)  # fmt: skip
    assert (status, err) == (0, "")
    first, last = (float(word) for word in out.split("divergence ")[1].removesuffix(" nats\n").split(" -> "))
    assert last < 0.8 * first
    assert str(tmp_path) not in (adapter / "adapter_config.json").read_text()
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump({"trace": "x", "policies": ["dense", "dip"], "dram": "20 kB"}))
    perplexity = {}
    for name, extra in (("plain", []), ("adapted", ["--adapter", adapter])):
        arguments = ["evaluate", tmp_path / "exp.yaml", *options, "--sequences", 8, *extra, "--out", tmp_path / name]
        status, out, err = cli_run(*arguments)
        assert (status, err) == (0, "")
        table = pd.read_csv(tmp_path / name / "quality.csv")
        perplexity[name] = table.set_index("policy").perplexity["dip"]
        assert f"{perplexity[name]:.2f}" in out
    assert perplexity["adapted"] != perplexity["plain"]
    other = save(tmp_path / "other", make("Llama", hidden_size=16))
    status, _, err = cli_run("evaluate", tmp_path / "exp.yaml", *["--model", other, *options[2:]], "--sequences", 2,
                             "--adapter", adapter)  # fmt: skip
    assert status == 2
    assert "is not an adapter of this model" in err
    assert err.count("\n") == 1
    deeper = save(tmp_path / "deeper", make("Llama", num_hidden_layers=4))
    status, _, err = cli_run("evaluate", tmp_path / "exp.yaml", *["--model", deeper, *options[2:]], "--sequences", 2,
                             "--adapter", adapter)  # fmt: skip
    assert status == 2
    assert "18 matrices for 24" in err


def test_lora_gradients_reach_every_matrix():
    tiny = loaded(dtype=torch.float32)
    model, losses = training.adapt(tiny, tokens(4, 12), load_policy("dip"), rank=2, steps=3, batch=2)
    moved = {name.split(".")[-4] for name, p in model.named_parameters() if "lora_B" in name and p.abs().sum() > 0}
    assert moved == {"gate_proj", "up_proj", "down_proj"}
    assert len(losses) == 3
    with pytest.raises(InputError, match="steps: must be more than 0"):
        training.adapt(tiny, tokens(), load_policy("dip"), steps=0)


def test_predictor_is_trained_counted_and_used(tmp_path):
    tiny, ids = loaded(dtype=torch.float32), tokens(4, 12)
    path, weights = tmp_path / "t.safetensors", tmp_path / "p.safetensors"
    write_trace(path, Header(model=tiny.shape, sequence_starts=(0, 12, 24, 36)), collect(tiny, ids.tolist()), "float32")
    found = train_predictor(Trace.open(path), weights, fraction=0.25, rank=8, steps=100)
    assert found > 0.6  # a quarter by chance
    policy = load_policy("predictor", weights=str(weights), fraction=0.25)
    assert policy.static_bytes(tiny.shape) == 3 * (32 * 8 + 8 * 64) * 2
    used = Setting(policy, tiny.shape.static_bytes(12) + 5000 + policy.static_bytes(tiny.shape))
    (open_loop,) = plan(Trace.open(path), [used])
    assert open_loop.budget.policy_bytes == 3 * 8 * 96 * 2
    assert open_loop.dram_static[0].sum() == pytest.approx(tiny.shape.static_bytes(1) + open_loop.budget.policy_bytes)
    losses, (closed,) = measure(tiny, ids, [used])
    assert np.isfinite(losses).all()
    assert (closed.dram_hits[:, closed.layer == 0] == open_loop.dram_hits[:, open_loop.layer == 0]).all()
    with pytest.raises(InputError, match="was trained on another model"):
        policy.static_bytes(tiny.shape.model_copy(update={"hidden_size": 64}))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"not a readable safetensors file .*; make one with .* train-predictor"):
        load_policy("predictor", weights=str(tmp_path / "bad.safetensors")).static_bytes(tiny.shape)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"--text": "missing.txt"}, "missing.txt: cannot be read"),
        ({"--text": "short.txt"}, "short.txt: has 2 tokens; 2 x 8 are wanted"),
        ({"--length": "1"}, "length: too few"),
        ({"--length": "64"}, "length: 64 is more than the 32 positions"),
        ({"--sequences": "0"}, "sequences: too few"),
        ({"--device": "cuda"}, "device 'cuda': is not available here"),
        ({"--dtype": "int4"}, "torch dtype 'int4'"),
        ({"--model": "no/such-model-here"}, "no/such-model-here"),
        ({"--adapter": "nowhere"}, "nowhere: holds no adapter_config.json"),
    ],
)
def test_bad_input_to_evaluate_is_one_line(tmp_path, monkeypatch, cli_run, change, complaint):
    if torch.cuda.is_available() and "--device" in change:
        pytest.skip("there is a GPU here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "text.txt").write_text(" ".join(f"w{i % 50}" for i in range(140)))
    (tmp_path / "short.txt").write_text("w1 w2")
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump({"trace": "x", "policies": ["dip"], "dram": "20 kB"}))
    given = {"--model": save(tmp_path / "model", make("Llama")), "--text": "text.txt", "--sequences": 2, "--length": 8}
    arguments = [str(part) for pair in (given | change).items() for part in pair]
    status, out, err = cli_run("evaluate", "exp.yaml", *arguments)
    assert (status, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_text_is_cut_into_whole_sequences(tmp_path):
    model = load(save(tmp_path / "model", make("Llama")))
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i % 50}" for i in range(40)))
    assert read_tokens(model, text, None, 16).shape == (2, 16)
    assert read_tokens(model, text, 1, 16)[0].tolist() == [i + 2 for i in range(16)]


@pytest.mark.slow
@pytest.mark.xdist_group("real model")
def test_the_real_model_through_the_command_line(tmp_path, cli_run, checkout, loaded_once):
    """SmolLM2 on a page of this project: dense equals a direct computation, light pruning costs little, hard much."""
    from dipsim.live import smollm2

    smollm2.fetch()
    data = {"trace": "smollm2-135m", "dram": {"mlp_fraction": 0.7}}
    data["policies"] = [
        "dense",
        {"dip": {"keep": 0.9}},
        {"dip": {"keep": 0.3}},
        {"dip-ca": {"keep": 0.9, "gamma": 0.5}},
    ]
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(data))
    options = ["--model", "smollm2-135m", "--text", checkout / "traces/README.md", "--sequences", 2, "--length", 128]
    status, _, err = cli_run("evaluate", tmp_path / "exp.yaml", *options, "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    dense, light, hard, aware = pd.read_csv(tmp_path / "out/quality.csv").to_dict("records")
    model = loaded_once("smollm2-135m")  # what the command loaded
    ids = read_tokens(model, checkout / "traces/README.md", 2, 128)
    with torch.inference_mode():
        logits = model.model(ids).logits[:, :-1].log_softmax(-1)
    expected = np.exp(-torch.gather(logits, 2, ids[:, 1:, None]).double().mean().item())
    assert dense["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert abs(light["perplexity"] / dense["perplexity"] - 1) < 0.03
    assert hard["perplexity"] > 1.3 * dense["perplexity"]
    assert aware["hit_rate"] > light["hit_rate"]
    assert aware["tokens_per_s"] > light["tokens_per_s"] > dense["tokens_per_s"]
