"""Weights nested in a model's own code: read, fitted, chosen among and computed with, against explicit loops."""

import hashlib
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

from safetensors.numpy import save_file  # noqa: E402
from tiny_models import SIZES, make  # noqa: E402

from dipsim.basics.errors import InputError  # noqa: E402
from dipsim.basics.fields import parse  # noqa: E402
from dipsim.live import calibrate_precision as calibration  # noqa: E402
from dipsim.live import moments as live_moments  # noqa: E402
from dipsim.live.adapt import Training  # noqa: E402
from dipsim.live.adapt_precision import adapt_precision  # noqa: E402
from dipsim.live.closed_loop import LiveActivations, sparsified  # noqa: E402
from dipsim.live.codes import MIDDLE, Code, nested_weights, read_codes, weights_of  # noqa: E402
from dipsim.live.evaluate import evaluate  # noqa: E402
from dipsim.live.models import LoadedModel  # noqa: E402
from dipsim.live.perplexity import measure, nll  # noqa: E402
from dipsim.live.requests import record_requests  # noqa: E402
from dipsim.live.swiglu import find_mlps  # noqa: E402
from dipsim.planning.builder import PlanBuilder  # noqa: E402
from dipsim.planning.fetch_plan import Setting  # noqa: E402
from dipsim.planning.planner import plan  # noqa: E402
from dipsim.sparsity.calibrated import BASES, NESTED, Calibrated, weights_of_tokens  # noqa: E402
from dipsim.sparsity.plugins import load_policy  # noqa: E402
from dipsim.sparsity.policy import Group  # noqa: E402
from dipsim.study.experiment import Experiment  # noqa: E402
from dipsim.workload import Trace  # noqa: E402
from dipsim.workload.shape import MATRICES, ModelShape  # noqa: E402

NAMES = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


def write_gguf(path, mlps, kind=gguf.GGMLQuantizationType.Q4_1):
    """The MLPs of a model as a GGUF file has them; the model's weights become what the file says."""
    writer = gguf.GGUFWriter(path, "llama")
    for layer, mlp in enumerate(mlps):
        for matrix, name in NAMES.items():
            weight = mlp.weight(matrix)
            packed = gguf.quants.quantize(weight.detach().float().numpy(), kind)
            writer.add_tensor(f"blk.{layer}.{name}.weight", packed, raw_dtype=kind)
            with torch.no_grad():
                weight.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tokens(sequences=3, length=16, seed=1):
    return torch.randint(2, SIZES["vocab_size"], (sequences, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random model of 3 layers, hidden size 32 and 64 neurons, whose MLPs lie in a GGUF file in Q4_1."""
    model = make("Llama").double()
    with torch.no_grad():
        for mlp in find_mlps(model):
            for matrix in MATRICES:
                mlp.weight(matrix).mul_(0.4)
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, find_mlps(model))
    shape = ModelShape.from_config(model.config.to_dict(), name="tiny")
    return LoadedModel(model, None, shape, find_mlps(model), {}, path=path)


@pytest.fixture(scope="module")
def calibrated(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated")
    (folder / "text.txt").write_text("what it was made of", encoding="utf-8")
    out = folder / "tiny.precision.safetensors"
    return calibration.calibrate_precision(tiny, tokens(6), folder / "text.txt", out)


def setting(tiny, calibrated, share=0.6, length=16, **parameters):
    policy = load_policy("precision", calibration=str(calibrated.path), **parameters)
    size = tiny.shape.static_bytes(length) + policy.static_bytes(tiny.shape) + share * tiny.shape.mlp_bytes
    return Setting(policy, size)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_codes_are_those_of_the_file(tmp_path, kind):
    model = make("Llama")
    path = tmp_path / "model.gguf"
    write_gguf(path, find_mlps(model), gguf.GGMLQuantizationType[kind])
    codes = read_codes(path, 3)
    for layer, mlp in enumerate(find_mlps(model)):
        for matrix in MATRICES:
            code = codes[layer][matrix]
            assert code.scale.min() >= 0
            assert 0 <= code.code.min() < code.code.max() <= 15
            found = (code.centre[..., None] + code.scale[..., None] * (code.grouped.float() - MIDDLE)).flatten(1)
            assert found.numpy() == pytest.approx(mlp.weight(matrix).detach().numpy(), abs=2e-6)


def test_the_levels_are_prefixes_of_one_code(tiny, calibrated):
    code = read_codes(tiny.path, 3)[1]["up_proj"]
    for bits in range(1, 4):
        assert (code.prefix(bits + 1) // 2 == code.prefix(bits)).all()
    weights = weights_of(code, calibrated, 1, "up_proj")
    assert weights[0] is None
    assert len(weights) == len(NESTED.each)
    for level in BASES:  # equal prefixes of a group stand for equal weights
        grouped, prefix = weights[level].view(*code.scale.shape, 32), code.prefix(int(NESTED.each[level].code))
        for row, group in ((0, 0), (17, 0), (63, 0)):
            for value in prefix[row, group].unique():
                assert len(grouped[row, group][prefix[row, group] == value].unique()) == 1
    exact = tiny.mlps[1].weight("up_proj").float()
    errors = [(weight - exact).square().mean().item() for weight in weights[1:]]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4 * exact.square().mean()


def test_scales_of_a_base_lie_on_grids_of_four_bits(calibrated):
    for level in BASES:
        for matrix in MATRICES:
            scale, centre = calibrated.base(2, matrix, level)
            assert len(np.unique(scale)) <= 16
            ratios = centre / scale
            assert len(np.unique(ratios.round(3))) <= 16
            assert len(calibrated.of(2, f"{matrix}.values{level}")) == 2 ** int(NESTED.each[level].code)


def test_the_fit_is_the_least_error_in_its_metric():
    """Unrounded scales and centres solve the normal equations; rounded ones with feedback beat rounding by itself."""
    generator = torch.Generator().manual_seed(4)
    code = Code(
        torch.randint(0, 16, (24, 256), generator=generator, dtype=torch.uint8),
        torch.rand(24, 8, generator=generator) + 0.2,
        torch.randn(24, 8, generator=generator),
    )
    mix = torch.randn(256, 256, generator=generator)
    sigma = mix @ mix.T / 256 + 0.05 * torch.eye(256) + 0.3  # inputs whose mean is not 0
    prefix = code.prefix(2)
    values = calibration._values(code, prefix, 2)
    basis, exact = values[prefix], code.exact()
    matrices, sides = calibration._normal_equations(basis, exact, sigma)
    design = torch.zeros(256, 16)
    for group in range(8):
        here = slice(32 * group, 32 * group + 32)
        design[here, 2 * group], design[here, 2 * group + 1] = basis[5, group], 1.0
    plain = design.T @ sigma @ design
    ridge = 1e-4 * plain.diagonal().mean() * torch.eye(16)
    assert matrices[5].numpy() == pytest.approx((plain + ridge).numpy(), rel=1e-4, abs=1e-4)
    assert sides[5].numpy() == pytest.approx((design.T @ sigma @ exact[5]).numpy(), rel=1e-4, abs=1e-3)

    def energy(fitted):
        scale, centre = np.exp(fitted["scales"])[fitted["base"] & 15], fitted["centres"][fitted["base"] >> 4]
        own = code.row_scale
        scale = torch.from_numpy(scale) * own
        weights = ((torch.from_numpy(centre) * scale)[..., None] + scale[..., None] * basis).flatten(1)
        delta = exact - weights
        return ((delta @ sigma) * delta).sum().item()

    def nearest(fitted):
        """The same grids, each scale and centre rounded by itself."""
        best = torch.linalg.solve(matrices, sides[..., None])[..., 0]
        scale = best[:, 0::2].clamp(min=1e-6)
        place = (scale / code.row_scale).log()[..., None].sub(torch.from_numpy(fitted["scales"])).abs().argmin(-1)
        rounded = torch.from_numpy(fitted["scales"])[place].exp() * code.row_scale
        centre = (best[:, 1::2] / rounded)[..., None].sub(torch.from_numpy(fitted["centres"])).abs().argmin(-1)
        return fitted | {"base": (place + 16 * centre).numpy().astype(np.uint8)}

    found = calibration.fit_base(code, 2, sigma)
    fitted = energy(found)
    assert fitted < 0.97 * energy(nearest(found))
    best = torch.linalg.solve(matrices, sides[..., None])[..., 0]
    unrounded = exact - (best[:, 1::2, None] + best[:, 0::2, None] * basis).flatten(1)
    assert ((unrounded @ sigma) * unrounded).sum().item() <= fitted * 1.001
    assert fitted < energy(calibration.fit_base(code, 2, torch.eye(256)))


def test_moments_errors_and_values_by_loops(tiny, calibrated, monkeypatch):
    """E[x x'] and E[g g'] from autograd of the losses by each output; errors of rows and columns one by one."""
    ids = tokens(6)
    labels = [ids[:, 1:].flatten(), *torch.randint(52, (2, 90), generator=torch.Generator().manual_seed(5))]
    with monkeypatch.context() as patch:  # of a batch of 4 and one of 2 sequences
        patch.setattr(
            live_moments, "_drawn", lambda _, begin: [each.view(6, 15)[begin:][:4].flatten() for each in labels[1:]]
        )
        seen = live_moments.moments(tiny, ids)[1]
    inputs, outputs = [], []

    def hook(_module, arguments, output):
        inputs.append(arguments[0].detach())
        output.retain_grad()
        outputs.append(output)

    handle = tiny.mlps[1].module.register_forward_hook(hook)
    for each in labels:
        logits = tiny.model(ids, use_cache=False).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), each, reduction="sum").backward()
    handle.remove()
    tiny.model.zero_grad()
    flat = torch.cat([values.grad.flatten(0, 1) for values in outputs])
    x = inputs[0].flatten(0, 1)
    assert seen.inputs.numpy() == pytest.approx((x.T @ x / len(x)).numpy(), rel=1e-4, abs=1e-5)
    assert seen.gradients.numpy() == pytest.approx((flat.T @ flat / len(flat)).numpy(), rel=1e-4, abs=1e-5)
    squares = flat.square().sum(1).view(3, -1).mean(0).float()
    again = live_moments.fit_token_weight(x.float(), squares).float()
    assert seen.token_weight.float().numpy() == pytest.approx(again.numpy(), abs=0.02)
    inputs, gradients = (getattr(live_moments.moments(tiny, ids)[1], name) for name in ("inputs", "gradients"))
    codes = read_codes(tiny.path, 3)
    for name, matrix in (("gate", "gate_proj"), ("down", "down_proj")):
        weights = weights_of(codes[1][matrix], calibrated, 1, matrix)
        exact, errors = weights[-1], calibrated.of(1, f"{name}.errors")
        for level in (0, 2, 3):
            delta = exact - (0 if level == 0 else weights[level])
            for unit in (0, 7, 31):
                part = delta[unit] if name == "gate" else delta[:, unit]
                metric = inputs if name == "gate" else gradients / 2
                assert errors[unit, level] == pytest.approx((part @ metric @ part).item(), rel=0.05)
    assert (calibrated.of(1, "up.errors")[:, -1] == 0).all()
    column = weights_of(codes[1]["down_proj"], calibrated, 1, "down_proj")[-1][:, 9]
    assert calibrated.of(1, "value")[9] == pytest.approx((column @ gradients @ column).item() / 2, rel=0.05)


def test_the_weight_of_a_token_is_learned_from_what_it_sees():
    """Squares that depend on two of six inputs, with noise, one of which is never different."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(6000, 6, generator=generator) * torch.tensor([1.0, 3.0, 0.2, 1.0, 1.0, 0.0]) + 0.5
    true = (0.5 * x[:, 0] - 0.1 * x[:, 1]).exp()
    found = live_moments.fit_token_weight(x, true * torch.distributions.Exponential(0.2).sample(true.shape))
    assert found.dtype == torch.float16
    weights = weights_of_tokens(x, found.float())
    assert weights.mean().item() == pytest.approx(1, rel=0.01)
    assert np.corrcoef(weights[:, 0].log(), true.log())[0, 1] > 0.98
    assert 0.25 < found[0] < 0.5  # drawn towards 0
    assert -0.1 < found[1] < -0.05
    assert abs(found[2]) < 0.15
    assert found[5] == 0
    largest = weights_of_tokens(np.full((2, 6), 50.0), np.array([1.0, 0, 0, 0, 0, 0, -2.0]))
    assert largest == pytest.approx(np.full((2, 1), math.exp(3.0)))


@pytest.mark.parametrize("case", ["few", "outliers", "constant", "nothing", "one"])
def test_a_weight_that_cannot_be_told_is_one_line_or_finite(case):
    generator = torch.Generator().manual_seed(11)
    x = torch.randn({"few": 3, "one": 1}.get(case, 400), 40, generator=generator)
    squares = torch.rand(len(x), generator=generator) * (0 if case == "nothing" else 1)
    if case == "outliers":
        x[:2] *= 1e4
        squares[:2] = 1e9
    if case == "constant":
        x[:, 3] = 7.0
        x[0, 3] = 7.000001
    if case in ("nothing", "one"):
        with pytest.raises(InputError, match=f"cannot be told from {len(x)} tokens; give a longer text"):
            live_moments.fit_token_weight(x, squares)
        return
    found = live_moments.fit_token_weight(x, squares)
    assert found.isfinite().all()
    assert case != "constant" or found[3] == 0


def test_next_tokens_are_drawn_as_the_model_expects_them():
    logits = torch.tensor([[0.0, 1.0, -9.0]]).repeat(20000, 1)
    drawn = live_moments._drawn(logits, 3)
    assert drawn.shape == (2, 20000)
    assert (drawn[0] != drawn[1]).any()
    assert (drawn == 1).float().mean().item() == pytest.approx(math.e / (1 + math.e), abs=0.01)
    assert (live_moments._drawn(logits, 3) == drawn).all()
    assert (live_moments._drawn(logits, 4) != drawn).any()


def test_typical_scores_have_the_weights_of_their_tokens(tiny, calibrated):
    seen = []
    handle = tiny.mlps[2].module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.inference_mode():
        tiny.model(tokens(6), use_cache=False)
        handle.remove()
        x = seen[0].flatten(0, 1)
        gate, up = tiny.mlps[2].project("gate_proj", x), tiny.mlps[2].project("up_proj", x)
        weights = weights_of_tokens(x, torch.from_numpy(calibrated.of(2, "token_weight")).double())
        down = (torch.nn.functional.silu(gate) * up).square() * weights
    assert weights.std() > 0.05
    assert calibrated.of(2, "down.scores") == pytest.approx(calibration._parts(down), rel=1e-4)
    value = torch.from_numpy(calibrated.of(2, "value"))
    up_scores = torch.nn.functional.silu(gate).square() * value * weights
    assert calibrated.of(2, "up.scores") == pytest.approx(calibration._parts(up_scores), rel=1e-4)


def test_typical_scores_are_means_of_parts():
    scores = torch.rand(1000, 3, generator=torch.Generator().manual_seed(2))
    found, weights = calibration._parts(scores), np.diff(calibration.EDGES)
    assert found.T @ weights == pytest.approx(scores.mean(0).numpy(), rel=1e-5)
    ordered = np.sort(scores.numpy(), axis=0)
    assert found[1] == pytest.approx(ordered[250:500].mean(axis=0), rel=1e-5)
    assert found[-1] == pytest.approx(ordered[998:].mean(axis=0), rel=1e-5)
    few = calibration._parts(scores[:5])  # parts without a token
    assert (np.diff(few, axis=0) >= 0).all()


def normal_mean_square(function, value, deviation):
    nodes = ((0, 2 / 3), (math.sqrt(3), 1 / 6), (-math.sqrt(3), 1 / 6))
    return sum(weight * function(value + node * deviation) ** 2 for node, weight in nodes)


def silu(x):
    return x / (1 + math.exp(-x))


def slope(x):
    sigmoid = 1 / (1 + math.exp(-x))
    return sigmoid * (1 + x * (1 - sigmoid))


class Acts:
    """Three neurons whose errors are as large as their values."""

    layer = 1

    def __init__(self, **values):
        vars(self).update(values)


def test_scores_take_the_error_of_the_base_into_account(tiny, calibrated):
    policy = load_policy("precision", calibration=str(calibrated.path))
    gate_group, up_group, down_group = policy.groups(tiny.shape)
    random = np.random.default_rng(0)
    errors = {name: calibrated.of(1, f"{name}.errors") for name in ("gate", "up")}
    value = calibrated.of(1, "value")
    levels = {name: random.integers(0, 3, (4, 64)) for name in ("gate", "up")}
    gate, up = random.normal(0, 0.1, (2, 4, 64))
    x, of_weight = random.normal(0, 0.3, (4, 32)), calibrated.of(1, "token_weight").astype(float)
    weight = np.array([[math.exp(sum(a * b for a, b in zip(of_weight, [*token, 1.0], strict=True)))] for token in x])
    assert weight.std() > 0.02
    for known in (levels, {}):
        variance = {name: errors[name][np.arange(64), known[name]] if known else np.zeros((4, 64)) for name in errors}
        acts = Acts(gate_proj=gate, up_proj=up, glu=gate, levels=known, mlp_input=x)
        tensors = {name: torch.from_numpy(found) for name, found in known.items()}
        found = {"gate_proj": gate, "up_proj": up, "mlp_input": x}
        live = Acts(**{name: torch.from_numpy(each) for name, each in found.items()}, levels=tensors)
        for group, expected in (
            (gate_group, lambda g, u, e, f, v: (u * u + f) * normal_mean_square(slope, g, math.sqrt(e)) * v),
            (up_group, lambda g, _u, e, _f, v: normal_mean_square(silu, g, math.sqrt(e)) * v),
        ):
            by_hand = np.vectorize(expected)(gate, up, variance["gate"], variance["up"], value) * weight
            assert policy.scores(group, acts) == pytest.approx(by_hand, rel=1e-5)
            assert policy.scores(group, live).numpy() == pytest.approx(by_hand, rel=1e-5)
        assert policy.scores(down_group, acts) == pytest.approx(gate * gate * weight)


def least(score, errors, price, unit, resident):
    costs = [score * errors[level] + price / 1e6 * NESTED.steps[resident][level] * unit for level in range(6)]
    return min(range(6), key=costs.__getitem__)


def test_outputs_and_bytes_by_explicit_loops(tiny, calibrated):
    """One MLP, neuron by neuron: base pass, gate, up, down; each choice by trying all levels."""
    used = setting(tiny, calibrated, price=300.0)
    builder = PlanBuilder(tiny.shape, used, 48, (0, 16, 32))
    weights = nested_weights(tiny, used.policy)
    layer, x = 1, torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with sparsified(tiny.mlps, [builder], (), weights), torch.inference_mode():
        outputs = [mlp.module(x) for mlp in tiny.mlps][layer]
    plan = builder.finish()
    w = {
        matrix: [None if each is None else each.numpy() for each in levels.each]
        for matrix, levels in weights[layer].items()
    }
    errors = {name: calibrated.of(layer, f"{name}.errors").astype(float) for name in ("gate", "up", "down")}
    value, price = calibrated.of(layer, "value").astype(float), 300.0
    of_weight = calibrated.of(layer, "token_weight").astype(float)
    resident = {name: builder.precision.resident[name, layer] for name in errors}
    first = layer * 5
    kinds = set()
    for token, vector in enumerate(x.reshape(48, 32).numpy()):
        glu, bytes_ = np.zeros(64), dict.fromkeys(errors, 0.0)
        base = {
            name: [0.0 if level == 0 else float(w[matrix][level][j] @ vector) for j, level in enumerate(resident[name])]
            for name, matrix in (("gate", "gate_proj"), ("up", "up_proj"))
        }
        expected = np.zeros(32)
        weight = math.exp(min(3.0, max(-3.0, sum(a * b for a, b in zip(of_weight, [*vector, 1.0], strict=True)))))
        for j in range(64):
            g, u = base["gate"][j], base["up"][j]
            spread = math.sqrt(errors["gate"][j, resident["gate"][j]])
            score = (
                (u * u + errors["up"][j, resident["up"][j]]) * normal_mean_square(slope, g, spread) * value[j] * weight
            )
            level = least(score, errors["gate"][j], price, 16, resident["gate"][j])
            bytes_["gate"] += NESTED.steps[resident["gate"][j], level] * 16
            g = 0.0 if level == 0 else float(w["gate_proj"][level][j] @ vector)
            score = normal_mean_square(silu, g, math.sqrt(errors["gate"][j, level])) * value[j] * weight
            kinds.add(("gate", level))
            level = least(score, errors["up"][j], price, 16, resident["up"][j])
            bytes_["up"] += NESTED.steps[resident["up"][j], level] * 16
            kinds.add(("up", level))
            glu[j] = silu(g) * (0.0 if level == 0 else float(w["up_proj"][level][j] @ vector))
            level = least(glu[j] ** 2 * weight, errors["down"][j], price, 16, resident["down"][j])
            bytes_["down"] += NESTED.steps[resident["down"][j], level] * 16
            kinds.add(("down", level))
            if level:
                expected += w["down_proj"][level][:, j] * glu[j]
        assert outputs.reshape(48, 32)[token].numpy() == pytest.approx(expected, rel=1e-6, abs=1e-9)
        for place, name in enumerate(errors):
            assert plan.flash_misses[token, first + 2 + place] == pytest.approx(bytes_[name])
    assert len(kinds) > 8
    held = sum(builder.precision.held_bytes(group, layer) for group in builder.groups)
    assert plan.dram_hits[:, first : first + 5].sum(axis=1) == pytest.approx(np.full(48, held))


@pytest.mark.parametrize("axis", ["neuron", "input"])
def test_values_are_those_of_the_levels_known_so_far(tiny, calibrated, axis):
    """Rows or input columns at levels of their own, [N] for all tokens or one for each token and unit."""
    weights = nested_weights(tiny, setting(tiny, calibrated).policy)[0]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    acts = LiveActivations(tiny.mlps[0], x, 0, weights)
    size = 64 if axis == "neuron" else 32
    group = Group("g", ("gate_proj",), axis, 0, price=1.0, levels=NESTED)
    for shape in ((size,), (2, 5, size)):
        levels = torch.randint(0, 6, shape, generator=torch.Generator().manual_seed(9)).byte()
        before = acts.glu
        acts.at(group, levels)
        each = levels.expand(2, 5, size)
        for s, t in ((0, 0), (1, 4)):
            mixed = torch.zeros(64, 32, dtype=torch.float64)
            for unit, level in enumerate(each[s, t].tolist()):
                part = (unit, slice(None)) if axis == "neuron" else (slice(None), unit)
                mixed[part] = 0.0 if level == 0 else weights["gate_proj"].each[level][part]
            assert acts.gate_proj[s, t].detach().numpy() == pytest.approx(
                (mixed @ x[s, t]).numpy(), rel=1e-9, abs=1e-12
            )
        assert (acts.glu != before).any()
        assert torch.equal(acts.glu, torch.nn.functional.silu(acts.gate_proj) * acts.up_proj)


def test_a_prefix_of_a_sequence_gives_the_same(tiny, calibrated):
    used, ids = setting(tiny, calibrated, price=0.5), tokens(2, 16, seed=7)
    whole, plans = measure(tiny, ids, [used])
    part, shorter = measure(tiny, ids[:, :9], [setting(tiny, calibrated, price=0.5, length=9)])
    assert part == pytest.approx(whole[:, :8], rel=1e-9)
    rows = np.concatenate([np.arange(9), 16 + np.arange(9)])
    assert (shorter[0].flash_misses == plans[0].flash_misses[rows]).all()
    assert shorter[0].flash_misses.sum() > 0


def test_cheap_reading_is_exact_and_dear_reading_is_the_base(tiny, calibrated):
    ids = tokens(2, 16, seed=5)
    with torch.inference_mode():
        dense = nll(tiny, ids)
    found = {}
    for price in (1e-6, 0.5, 1e12):
        losses, (plan,) = measure(tiny, ids, [setting(tiny, calibrated, price=price)])
        found[price] = np.abs(losses - dense).mean(), plan.flash_misses.sum()
    assert found[1e-6][0] < 0.02
    assert found[1e12][1] == 0
    assert found[1e-6][0] < found[0.5][0] < found[1e12][0]
    assert found[1e-6][1] > found[0.5][1] > 0


def test_evaluate_gives_a_row_for_each_size_of_dram(tiny, calibrated):
    experiment = parse(
        Experiment,
        {
            "trace": "smollm2-135m",
            "policies": ["dense", {"precision": {"calibration": str(calibrated.path), "price": 0.05}}],
            "sweep": {"dram": [{"mlp_fraction": 0.75}, {"mlp_fraction": 0.9}]},
        },
        "test",
    )
    rows = [result for _, result in evaluate(tiny, tokens(2, 16), experiment) if result.plan.groups]
    assert rows[0].perplexity != rows[1].perplexity
    assert rows[0].plan.flash_misses.sum() > rows[1].plan.flash_misses.sum()


def test_recorded_requests_replay_what_the_model_asked_for(tiny, calibrated, tmp_path):
    """The same plan without the model; at another size of DRAM the same requests, of which more is there."""
    text, out = tmp_path / "text.txt", tmp_path / "requests.safetensors"
    text.write_text("a", encoding="utf-8")
    fields = {"trace": "x", "policies": ["dense", {"precision": {"calibration": str(calibrated.path), "price": 0.05}}]}
    experiment = parse(Experiment, fields | {"dram": {"mlp_fraction": 0.75}}, "test")
    ids = tokens(2, 16)
    header = record_requests(tiny, ids, text, experiment, out)
    assert header.source["policy"].endswith("price=0.05)")
    policies, device = experiment.load_policies(), experiment.load_hardware(tiny.shape)
    used = experiment.settings(policies, tiny.shape, 16, device)
    _, (live,) = measure(tiny, ids, used[1:])
    trace = Trace.open(out)
    assert (trace.tokens, trace.sequence_starts) == (32, (0, 16))
    _, replayed = plan(trace, used)
    assert live.flash_misses.sum() > 0
    for name in ("dram_hits", "flash_misses", "reads", "read_bytes", "flops"):
        assert (getattr(replayed, name) == getattr(live, name)).all(), name
    (more,) = plan(trace, [replace(used[1], dram_bytes=used[1].dram_bytes + 0.1 * tiny.shape.mlp_bytes)])
    assert more.flash_misses.sum() < replayed.flash_misses.sum()
    for changes in ({"policies": ["dense"]}, {"sweep": {"dram": [{"mlp_fraction": 0.9}]}}):
        with pytest.raises(InputError, match="give one such policy at one size of DRAM"):
            record_requests(tiny, ids, text, parse(Experiment, fields | changes, "test"), out)


@pytest.mark.slow
def test_what_is_added_to_nested_weights_is_trained_under_the_policy(tiny, calibrated, tmp_path):
    """The divergence falls; factors lie in the new file, are charged, and are added whatever the levels."""
    out = tmp_path / "trained.precision.safetensors"
    fields = {"trace": "x", "policies": [{"precision": {"calibration": str(calibrated.path), "price": 2.0}}]}
    experiment = parse(Experiment, fields | {"dram": {"mlp_fraction": 0.7}}, "test")
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    text = tmp_path / "train.txt"
    text.write_text("words", encoding="utf-8")
    losses = adapt_precision(tiny, tokens(6), text, experiment, out, rank=3, how=Training(60, 16, 1e-2, seed=1))
    assert len(losses) == 60
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())
    trained = Calibrated.read(out)
    how = trained.origin.trained
    assert (how.text, how.rank, how.steps, how.batch, how.length) == ("train.txt", 3, 60, 16, 16)
    assert how.text_sha256 == hashlib.sha256(b"words").hexdigest()
    assert how.policy == experiment.load_policies()[0].label
    assert how.dram_bytes == tiny.shape.static_bytes(16) + 0.7 * tiny.shape.mlp_bytes
    assert trained.table_bytes - calibrated.table_bytes == 3 * 2 * 3 * 3 * (32 + 64)  # 3 layers, 3 matrices, 2 bytes
    rows, inputs = trained.added(2, "down_proj")
    assert (rows.dtype, rows.shape, inputs.shape) == (np.float16, (32, 3), (3, 64))
    assert calibrated.added(2, "down_proj") is None
    one, two = (nested_weights(tiny, setting(tiny, each).policy)[1]["up_proj"] for each in (calibrated, trained))
    low, high = trained.added(1, "up_proj")
    assert low.any()
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for levels in (torch.full((64,), 5), torch.randint(0, 6, (5, 64), generator=torch.Generator().manual_seed(4))):
        expected = one.by_row(x, levels).numpy() + x.numpy() @ (low.astype(float) @ high.astype(float)).T
        assert two.by_row(x, levels).numpy() == pytest.approx(expected, rel=1e-9)
    wide = nested_weights(tiny, setting(tiny, trained).policy)[2]["down_proj"]
    glu = torch.randn(4, 64, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    exact = wide.each[5].numpy() + rows.astype(float) @ inputs.astype(float)
    assert wide.by_column(glu, torch.full((64,), 5)).numpy() == pytest.approx(glu.numpy() @ exact.T, rel=1e-9)
    ids = tokens(6)
    with torch.inference_mode():
        dense = nll(tiny, ids)
    apart = []
    for each in (calibrated, trained):
        found, _ = measure(tiny, ids, [setting(tiny, each, share=0.4, price=2.0)])
        apart.append(np.abs(found - dense).mean())
    assert apart[1] < 0.8 * apart[0]
    again = tmp_path / "again.precision.safetensors"
    adapt_precision(tiny, tokens(6), text, experiment, again, rank=3, how=Training(60, 16, 1e-2, seed=1))
    assert again.read_bytes() == out.read_bytes()
    for changes, message in (({"rank": 0}, "rank: must be more than 0"), ({}, "give one such policy at one size")):
        wrong = parse(Experiment, fields | {"policies": ["dense"] if not changes else fields["policies"]}, "test")
        with pytest.raises(InputError, match=message):
            adapt_precision(tiny, tokens(6), text, wrong, out, **({"rank": 2, "how": Training(2, 2, 1e-3)} | changes))
    with pytest.raises(InputError, match="learning rate: must be more than 0"):
        Training(5, 2, -1.0)
    half = replace(trained, path=tmp_path / "half.precision.safetensors")
    half.tensors.pop("layers.2.down_proj.lora_A")
    half.write()
    with pytest.raises(InputError, match=r"half.*layers.2.down_proj.lora_A: is missing; make it again"):
        nested_weights(tiny, setting(tiny, half).policy)


def test_factors_are_trained_in_float32_whatever_the_model(tiny, calibrated, tmp_path):
    low = make("Llama").half()
    low.load_state_dict({name: value.half() for name, value in tiny.model.state_dict().items()})
    loaded = LoadedModel(low, None, tiny.shape, find_mlps(low), {}, path=tiny.path)
    text, out = tmp_path / "train.txt", tmp_path / "low.precision.safetensors"
    text.write_text("words", encoding="utf-8")
    fields = {"trace": "x", "policies": [{"precision": {"calibration": str(calibrated.path), "price": 2.0}}]}
    experiment = parse(Experiment, fields | {"dram": {"mlp_fraction": 0.7}}, "test")
    losses = adapt_precision(loaded, tokens(6), text, experiment, out, rank=2, how=Training(20, 8, 1e-2))
    assert np.isfinite(losses).all()
    assert Calibrated.read(out).added(0, "gate_proj")[0].any()


def test_what_cannot_be_is_one_line(tiny, calibrated, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a", encoding="utf-8")
    out = tmp_path / "a.precision.safetensors"
    with pytest.raises(InputError, match=r"give a .gguf file"):
        calibration.calibrate_precision(replace(tiny, path=None), tokens(), text, out)
    model = make("Llama")
    write_gguf(tmp_path / "q8.gguf", find_mlps(model), gguf.GGMLQuantizationType.Q8_0)
    with pytest.raises(
        InputError,
        match=r"q8.gguf: blk.0.ffn_gate.weight: is in Q8_0, whose bits cannot be nested; those of Q4_0 and Q4_1",
    ):
        calibration.calibrate_precision(replace(tiny, path=tmp_path / "q8.gguf"), tokens(), text, out)
    with pytest.raises(InputError, match=r"blk.3.ffn_gate.weight: is missing"):
        read_codes(tiny.path, 4)
    (tmp_path / "bad.gguf").write_bytes(b"no")
    with pytest.raises(InputError, match=r"bad.gguf: not a readable GGUF file"):
        read_codes(tmp_path / "bad.gguf", 1)
    assert not out.exists()
    policy = setting(tiny, calibrated).policy
    with pytest.raises(InputError, match=r"use a .gguf model without an adapter"):
        nested_weights(replace(tiny, path=None), policy)
    write_gguf(tmp_path / "other.gguf", find_mlps(model))
    with pytest.raises(InputError, match=r"was made of another file of tiny than other.gguf"):
        nested_weights(replace(tiny, path=tmp_path / "other.gguf"), policy)
    with pytest.raises(InputError, match="is a calibration of tiny, and wider is used"):
        policy.groups(tiny.shape.model_copy(update={"name": "wider", "intermediate_size": 96}))
    with pytest.raises(InputError, match="cannot be read"):
        Calibrated.read(tmp_path / "none.precision.safetensors")
    out.write_bytes(b"no")
    with pytest.raises(InputError, match=r"not a readable safetensors file .*; make it again with .dipsim calib"):
        Calibrated.read(out)
    header = calibrated.origin.model_dump_json().replace('"version":2', '"version":1')
    save_file(calibrated.tensors, out, {"origin": header})
    with pytest.raises(InputError, match=r"version: must be 2 \(got 1\); make it again with .dipsim calib"):
        Calibrated.read(out)
    broken = Calibrated(
        out, calibrated.origin, {k: v for k, v in calibrated.tensors.items() if k != "layers.2.up.errors"}
    )
    broken.write()
    with pytest.raises(InputError, match=r"layers.2.up.errors: is missing; make it again"):
        PlanBuilder(tiny.shape, setting(tiny, broken), 16, (0,))


def test_the_command_line_says_in_one_line_what_is_wrong(cli_run, tmp_path, checkout, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("some words", encoding="utf-8")
    of = ("--sequence-length", 4, "--experiment", checkout / "examples/quickstart.yaml")
    for arguments, message in (
        (("calibrate-precision", "--model", "m", "--text", text, "--out", "a.safetensors"), "precision.safetensors"),
        (("check", checkout / "examples/precision.yaml"), "smollm2-135m.precision.safetensors: cannot be read"),
        (("run", "--policy", "precision"), "policy precision: calibration: is required but missing"),
        (
            (
                "adapt-precision",
                checkout / "examples/quickstart.yaml",
                "--model",
                "m",
                "--text",
                text,
                "--out",
                "a.txt",
            ),
            "--out a.txt: the file must end in .precision.safetensors",
        ),
        (
            ("record", "--model", "m", "--text", text, "--out", "a.safetensors", "--tokens", 7, *of),
            "--tokens 7: must be a multiple of the sequences' 4; change one of them",
        ),
    ):
        status, out, error = cli_run(*arguments)
        assert (status, out) == (2, "")
        assert message in error
        assert "dipsim calibrate-precision" in error or "cannot be read" not in error
        assert error.count("\n") == 1


def test_calibrations_are_made_and_trained_from_the_command_line(cli_run, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("dipsim.live.models.load", lambda *_: tiny)
    monkeypatch.setattr("dipsim.live.text.read_tokens", lambda _model, _text, count, length: tokens(count or 5, length))
    text, one = tmp_path / "text.txt", tmp_path / "one.yaml"
    text.write_text("some words", encoding="utf-8")
    made, trained = (tmp_path / f"{name}.precision.safetensors" for name in ("made", "trained"))
    of = ("--model", "tiny", "--text", text, "--out")
    status, out, error = cli_run("calibrate-precision", *of, made, "--sequences", 6, "--length", 16)
    assert (status, error) == (0, "")
    assert "from 6 x 16 tokens" in out
    policy = {"precision": {"calibration": str(made), "price": 2.0}}
    one.write_text(json.dumps({"trace": "x", "policies": [policy], "dram": {"mlp_fraction": 0.8}}), encoding="utf-8")
    options = ("--rank", 2, "--steps", 40, "--batch", 8, "--length", 16, "--learning-rate", 0.01)
    status, out, error = cli_run("adapt-precision", one, *of, trained, *options)
    assert (status, error) == (0, "")
    first, last = (float(part.split()[0]) for part in out.rpartition("divergence ")[2].split("->"))
    assert last <= first
    assert "rank 2, 40 steps" in out
    assert Calibrated.read(trained).origin.trained.text == "text.txt"
    one.write_text(json.dumps({"trace": "x", "policies": ["dense"]}), encoding="utf-8")
    status, out, error = cli_run("adapt-precision", one, *of, trained, *options)
    assert (status, out) == (2, "")
    assert error.startswith(f"error: {one}: policies: 0 have levels of precision; give one such policy at one size of")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("layers.2.gate_proj.base2", (5, 2), [64, 1]),  # a group of 32 inputs
        ("layers.0.down_proj.values3", (4,), [8]),
        ("layers.1.token_weight", (64,), [33]),
        ("layers.1.down.scores", (9, 64), [16, 64]),
    ],
)
def test_a_calibration_whose_parts_do_not_fit_is_refused(cli_run, calibrated, tmp_path, name, shape, expected):
    """By `check` as by whatever else reads it."""
    path = tmp_path / "x.precision.safetensors"
    assert cli_run("check", calibrated.path)[1].endswith("ok, a calibration of precision for tiny\n")
    other = {name: np.resize(calibrated.tensors[name], shape)}
    Calibrated(path, calibrated.origin, calibrated.tensors | other).write()
    status, _, error = cli_run("check", path)
    assert status == 2
    assert f"{name}: has shape {[*shape]}; {expected} is expected; make it again" in error


def test_requests_are_those_of_one_policy(tiny, calibrated, tmp_path):
    """By its parameters and what its files hold, wherever they lie."""
    text, out = tmp_path / "text.txt", tmp_path / "requests.safetensors"
    text.write_text("a", encoding="utf-8")
    fields = {"trace": "x", "policies": [{"precision": {"calibration": str(calibrated.path), "price": 0.05}}]}
    record_requests(
        tiny, tokens(2, 16), text, parse(Experiment, fields | {"dram": {"mlp_fraction": 0.75}}, "test"), out
    )
    copy, other = (tmp_path / f"{name}.precision.safetensors" for name in ("copy", "other"))
    shutil.copy(calibrated.path, copy)
    changed = {"layers.0.value": calibrated.tensors["layers.0.value"] + 1}
    Calibrated(other, calibrated.origin, calibrated.tensors | changed).write()
    trace, wanted = Trace.open(out), setting(tiny, calibrated)
    policy = wanted.policy.model_copy(update={"price": 0.05})
    plan(trace, [replace(wanted, policy=policy.model_copy(update={"calibration": str(copy)}))])
    for change in ({"price": 0.04}, {"lowest_gate": 1}, {"calibration": str(other)}):
        with pytest.raises(InputError, match=r"has the requests of precision\(.*price=0.05\), and .* asked for"):
            plan(trace, [replace(wanted, policy=policy.model_copy(update=change))])


@pytest.mark.slow
def test_runs_and_sweeps_take_a_trace_of_requests(cli_run, tiny, calibrated, tmp_path):
    """Without the model: two sizes of DRAM on two devices; the engine and the table agree."""
    text, out = tmp_path / "text.txt", tmp_path / "requests.safetensors"
    text.write_text("a", encoding="utf-8")
    fields = {"trace": "x", "policies": [{"precision": {"calibration": str(calibrated.path), "price": 0.05}}]}
    record_requests(
        tiny, tokens(2, 16), text, parse(Experiment, fields | {"dram": {"mlp_fraction": 0.75}}, "test"), out
    )
    fields |= {"trace": str(out), "policies": ["dense", *fields["policies"]]}
    (tmp_path / "one.yaml").write_text(json.dumps(fields | {"dram": {"mlp_fraction": 0.75}}), encoding="utf-8")
    status, _, error = cli_run("run", tmp_path / "one.yaml", "--out", tmp_path / "one")
    assert (status, error) == (0, "")
    run = {each["policy"].split("(")[0]: each for each in json.loads((tmp_path / "one/summary.json").read_text())}
    grid = {"dram": [{"mlp_fraction": 0.75}, {"mlp_fraction": 0.9}], "device": ["paper", "oneplus-12"]}
    (tmp_path / "grid.yaml").write_text(json.dumps(fields | {"sweep": grid}), encoding="utf-8")
    status, _, error = cli_run("sweep", tmp_path / "grid.yaml", "--out", tmp_path / "grid", "--workers", 1)
    assert status == 0, error
    table = pd.read_csv(tmp_path / "grid/sweep.csv")
    mine = table[table["policy"].str.startswith("precision")].set_index(["device", "mlp_fraction_in_dram"])
    assert len(mine) == 4
    on_paper = mine.loc["paper"].sort_index()["flash_bytes_per_token"]
    assert on_paper.iloc[0] > on_paper.iloc[1]
    assert run["precision"]["tokens_per_s"] == pytest.approx(mine.loc["paper"].sort_index()["tokens_per_s"].iloc[0])
    assert run["precision"]["tokens_per_s"] != run["dense"]["tokens_per_s"]
    clocked = fields | {"dram": {"mlp_fraction": 0.75}, "streams": 2}
    (tmp_path / "clock.yaml").write_text(json.dumps(clocked), encoding="utf-8")
    status, _, error = cli_run("run", tmp_path / "clock.yaml", "--out", tmp_path / "clock")
    assert status == 2
    assert "levels of precision are planned beforehand; leave out prefetch, speculate, streams" in error
