"""Planning on a GPU gives the CPU's plans. Without a GPU the kernels run in Triton's interpreter, column for column."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import CLAIRVOYANT, EVICTIONS
from oracles.slow import SlowCache, slow_runs
from tiny import SHAPE, activations

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")

from dipsim.basics.errors import InputError  # noqa: E402
from dipsim.basics.fields import parse  # noqa: E402
from dipsim.gpu import batch, kernels, planner  # noqa: E402
from dipsim.gpu.batch import Member  # noqa: E402
from dipsim.gpu.planner import GpuPlanner  # noqa: E402
from dipsim.gpu.trial import Tried  # noqa: E402
from dipsim.memory.eviction import RULES, eviction_rule  # noqa: E402
from dipsim.memory.eviction.rule import EvictionRule  # noqa: E402
from dipsim.planning.builder import PlanBuilder  # noqa: E402
from dipsim.planning.fetch_plan import Setting  # noqa: E402
from dipsim.planning.planner import CpuPlanner, plan  # noqa: E402
from dipsim.sparsity.plugins import load_policy  # noqa: E402
from dipsim.sparsity.ranking import top_k  # noqa: E402
from dipsim.study.experiment import Experiment  # noqa: E402
from dipsim.study.sweep import sweep  # noqa: E402
from dipsim.timing.device import Device  # noqa: E402
from dipsim.workload import Trace  # noqa: E402
from dipsim.workload.recorded import write_trace  # noqa: E402
from dipsim.workload.trace import Activations, Header  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the interpreter runs


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 40)),
        elements=st.sampled_from([-2, -0.0, 0, 1e-40, 1, np.inf]),
    ),
    st.sampled_from([np.float32, np.float64]),
    st.data(),
)
def test_choose_is_top_k(scores, dtype, data):
    k = data.draw(st.lists(st.integers(0, scores.shape[1]), min_size=len(scores), max_size=len(scores)))
    values = torch.tensor(scores.astype(dtype), device=DEVICE)
    masks = torch.zeros(values.shape, dtype=torch.bool, device=DEVICE)
    nan = torch.zeros(len(values), dtype=torch.uint8, device=DEVICE)
    kernels.top_k_rows(values, torch.tensor(k, dtype=torch.int32, device=DEVICE), masks, nan)
    assert masks.tolist() == [top_k(row, n).tolist() for row, n in zip(scores, k, strict=True)]
    assert not nan.any()
    values[-1, -1] = torch.nan
    kernels.top_k_rows(values, torch.tensor(k, dtype=torch.int32, device=DEVICE), masks, nan)
    assert nan.tolist() == [0] * (len(values) - 1) + [1]


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 12))), st.sampled_from(EVICTIONS))
def test_caches_are_the_slow_ones_column_by_column(masks, eviction):
    different, tokens, columns = masks.shape
    capacities = range(columns + 1)
    slow = [SlowCache(capacity, eviction, each) for each in masks for capacity in capacities]
    held = torch.tensor([*capacities] * different, dtype=torch.int32, device=DEVICE)
    caches = kernels.Caches(held, columns, eviction_rule(eviction), tokens)
    which = torch.arange(different, device=DEVICE).repeat_interleave(columns + 1)
    shown = torch.tensor(masks, device=DEVICE)
    future = kernels.nearness(shown) if eviction in CLAIRVOYANT else None
    for token in range(tokens):
        caches.step(shown, which * tokens, 1, future)
        for row, cache in enumerate(slow):
            wanted = masks[int(which[row]), token]
            hits = cache.step(wanted)
            missed = wanted.copy()
            missed[list(hits)] = False
            assert set(np.flatnonzero(caches.resident[row].cpu().numpy()).tolist()) == cache.resident
            runs = np.ravel(slow_runs(missed[None])).tolist()
            assert caches.counts[row, token].tolist() == [wanted.sum(), len(hits), len(cache.resident), *runs]


PLUGIN = """
import numpy as np
from dipsim import Group, Policy
class Mine(Policy):
    early: bool = False
    def at(self, position): return {at}
    def groups(self, shape): return [Group('neuron', ('down_proj',), 'neuron', 9)]
    def scores(self, group, acts): return {scores}
    def rerank(self, scores, resident): return {ranked}
"""
SMOOTH = "scores * (0.7 + 0.3 * resident)"  # numpy makes this float64
FORMULAS = {"scores": "abs(acts.glu)", "ranked": SMOOTH, "at": "self"}


@pytest.fixture
def own(tmp_path):
    """A plugin with some of its formulas changed."""

    def make(**change):
        (tmp_path / "mine.py").write_text(PLUGIN.format(**FORMULAS | change))
        return load_policy(tmp_path / "mine.py")

    return make


def on_gpu(trace, settings, progress=lambda *_: None):
    """The plans as a GPU makes them."""
    return plan(trace, settings, progress=progress, planner=GpuPlanner(DEVICE))


def same_plans(trace, settings, left=()):
    """Plan on both; all arrays must be equal bit for bit, and only the policies `left` be left to the CPU."""
    expected = plan(trace, settings)
    steps, kept, fill = [], [], CpuPlanner.fill
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            CpuPlanner, "fill", lambda self, t, builders, *rest: (kept.extend(builders), fill(self, t, builders, *rest))
        )
        found = on_gpu(trace, settings, lambda what, *step: steps.append(step) if "planning" in what else None)
    assert {each.setting.policy.name for each in kept} == set(left)
    layers = trace.shape.num_hidden_layers
    assert steps == [(layer + 1, layers) for layer in range(layers)]
    assert torch.get_default_dtype() == torch.float32
    for a, b in zip(expected, found, strict=True):
        for name, array in vars(a).items():
            if isinstance(array, np.ndarray):
                assert np.array_equal(array, getattr(b, name)), (a.setting, name)


def sizes(trace, shares=(0.1, 0.5, 1.0)):
    static = trace.shape.static_bytes(trace.tokens)
    return [static + share * trace.shape.mlp_bytes for share in shares]


@pytest.mark.slow
@pytest.mark.parametrize("eviction", EVICTIONS)
def test_plans_of_blind_policies_are_the_cpus(tiny_trace, eviction):
    trace = tiny_trace(tokens=5, starts=(0, 3))
    policies = [load_policy(name) for name in ("dense", "magnitude", "gate", "up", "dip", "dip-threshold")]
    policies.append(load_policy("dip", keep=0.75))
    same_plans(trace, [Setting(policy, size, eviction) for policy in policies for size in sizes(trace)])


@pytest.mark.slow
@pytest.mark.parametrize("eviction", ["none", "lru", "lfu"])
def test_plans_of_cache_aware_policies_are_the_cpus(tiny_trace, eviction):
    trace = tiny_trace(tokens=5, starts=(0, 3))
    parameters = [{}, {"gamma": 0.3, "keep": 0.75}, {"gamma": 0.2, "fixed_top_n": 2}, {"warmup": 4}]
    policies = [load_policy("dip-ca", **each) for each in parameters]
    same_plans(trace, [Setting(policy, size, eviction) for policy in policies for size in sizes(trace)])


@pytest.mark.slow
def test_a_batch_may_mix_everything(tiny_trace, own):
    trace = tiny_trace(tokens=4)
    policies = [*(load_policy(name) for name in ("dip", "dip-ca", "dip-ca-approx")), own()]
    settings = [Setting(p, size, e) for p in policies for size in sizes(trace) for e in ("lru", "lfu")]
    same_plans(trace, settings, left=["dip-ca-approx"])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["columns", "bundled", "rows"])
def test_layouts_that_leave_columns_in_order_are_planned_and_the_clock_starts_where_the_cpus_does(tiny_trace, layout):
    trace, dip = tiny_trace(tokens=7, starts=(0, 4)), load_policy("dip")
    same_plans(trace, [Setting(dip, sizes(trace)[1], start=start, layout=layout) for start in ("warm", "cold")])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dip", {"start": "filled"}),
        ("dip", {"flash": Device.load("oneplus-12").flash, "page": 4096.0}),
        ("dip", {"page": 4096.0}),
        ("dip", {"layout": "popularity", "start": "warm"}),
        ("dip", {"eviction": "pinned"}),
        ("worth", {"eviction": "pinned"}),
        ("dip-ca", {"free": True}),
    ],
)
def test_what_the_kernels_do_not_know_is_left_to_the_cpu(tiny_trace, name, options):
    trace = tiny_trace(tokens=6)
    policy = load_policy(name, **({"free": True} if options.pop("free", False) else {}))
    setting = Setting(policy, sizes(trace)[1], **options)
    assert not GpuPlanner(DEVICE).able(trace, setting, 6)
    same_plans(trace, [setting], left=[name])


def test_an_eviction_rule_without_a_kernel_is_left_to_the_cpu(tiny_trace, monkeypatch):
    monkeypatch.setitem(RULES, "fifo", None)  # the class below takes its place, and leaves with the test

    class Fifo(EvictionRule):
        name = "fifo"

        def admit(self, mask, hits, resident):
            self.count_token()
            self.value[resident & (mask ^ hits)] = self.token

    trace = tiny_trace(tokens=4)
    settings = [Setting(load_policy("magnitude"), sizes(trace)[2], "fifo")]
    same_plans(trace, settings, left=["magnitude"])
    assert not GpuPlanner(DEVICE).able(trace, settings[0], trace.tokens)
    assert GpuPlanner(DEVICE).able(trace, Setting(load_policy("magnitude"), sizes(trace)[2], "lfu"), trace.tokens)
    with pytest.raises(ValueError, match="eviction fifo: has no kernel"):
        kernels.Caches(torch.ones(1, dtype=torch.int32, device=DEVICE), 4, Fifo, 4)


@pytest.mark.slow
def test_layers_are_planned_a_few_at_a_time(tiny_trace, monkeypatch):
    monkeypatch.setattr(planner, "ROWS", 2)
    trace = tiny_trace(shape=SHAPE.model_copy(update={"num_hidden_layers": 11}), tokens=2)
    same_plans(trace, [Setting(load_policy(name), sizes(trace)[1], "lru") for name in ("dip", "dip-ca")])


@pytest.mark.slow
def test_layers_may_have_caches_of_different_sizes(tiny_trace, monkeypatch):
    monkeypatch.setattr(planner, "ROWS", 2)
    trace = tiny_trace(shape=SHAPE.model_copy(update={"num_hidden_layers": 3}), tokens=8)
    best = [
        Setting(load_policy(name), sizes(trace, (0.4,))[0], "lru", start="warm", split="best")
        for name in ("dip", "dip-ca")
    ]
    assert all(len({*capacities}) > 1 for made in plan(trace, best) for capacities in made.budget.capacities[:1])
    same_plans(trace, best)


@pytest.mark.parametrize(
    "change",
    [
        {"scores": "np.sqrt(np.abs(np.asarray(acts.glu)))"},  # no tensor
        {"scores": "abs(acts.glu) / abs(acts.glu).mean(0)"},  # summed in another order
        {"ranked": "scores if scores.mean() > 1 else scores * resident"},  # a branch on values
        {"ranked": "np.where(resident, scores, scores / 2)"},
        {"ranked": "scores + 2 * resident"},  # float64 in numpy, float32 in torch
        {
            "ranked": "scores + 2 * resident if self.early else scores",
            "at": "self.model_copy(update={'early': position < 3})",
        },
    ],
)
def test_what_tensors_would_rank_otherwise_is_left_to_the_cpu(tiny_trace, own, change):
    trace = tiny_trace(tokens=40)
    same_plans(trace, [Setting(own(**change), size, "lru") for size in sizes(trace)], left=["mine"])
    setting = Setting(own(**change), sizes(trace)[0])
    assert not GpuPlanner(DEVICE).able(trace, setting, trace.tokens)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"scores": "acts.glu.__imul__(2)"}, "scores failed in line [0-9]+: ValueError: output array is read-only"),
        ({"ranked": "scores.__imul__(2)"}, "rerank failed in line [0-9]+: ValueError: output array is read-only"),
        ({"scores": "acts.gate > 0"}, "must be numbers"),
        ({"at": "1 / position"}, "at failed in line [0-9]+: ZeroDivisionError"),
        ({"ranked": "scores * float('inf') - scores * float('inf')"}, "without NaN"),
        ({"ranked": "exit(3)"}, "rerank failed in line [0-9]+: SystemExit: 3"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_plugin_that_fails_does_so_as_on_the_cpu(tiny_trace, own, change, complaint):
    trace = tiny_trace(tokens=4)
    settings = [Setting(policy, sizes(trace)[1]) for policy in (load_policy("dip"), own(**change))]
    for make in (plan, on_gpu):
        with pytest.raises(InputError, match=complaint):
            make(trace, settings)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow)")
def test_a_ranking_that_turns_out_not_to_be_numbers(tmp_path, own):
    small, large = activations(tokens=2)
    large = Activations(*(np.float32(1e18) * values for values in (large.mlp_input, large.gate_proj, large.up_proj)))
    write_trace(tmp_path / "large.safetensors", Header(model=SHAPE), [small, large], dtype="float32")
    trace = Trace.open(tmp_path / "large.safetensors")
    setting = Setting(own(ranked="scores * scores - scores * scores"), sizes(trace)[1])
    for make in (plan, on_gpu):
        with pytest.raises(InputError, match="rerank must leave numbers, without NaN"):
            make(trace, [setting])


def test_memory_that_runs_out_is_not_the_plugins_fault(tiny_trace, own, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    trace = tiny_trace(tokens=4)
    settings = [Setting(own(), sizes(trace)[1])]
    monkeypatch.setattr(batch, "vmap", lambda *_: full)
    with pytest.raises(torch.OutOfMemoryError):
        on_gpu(trace, settings)


@pytest.mark.slow
def test_a_sweep_planned_on_a_gpu_is_the_same_to_the_byte(tiny_trace, tmp_path):
    trace = tiny_trace(tokens=4)
    grid = {"dram": [f"{size:.0f} B" for size in sizes(trace)], "eviction": ["lru", "lfu"]}
    policies = ["dense", "dip", {"dip-ca": {"gamma": 0.3}}, "dip-ca-approx"]
    chosen = parse(Experiment, {"trace": str(trace.path), "policies": policies, "sweep": grid}, "test")
    steps = []
    sweep(chosen, tmp_path / "cpu")
    planners = [GpuPlanner(DEVICE), CpuPlanner()]
    sweep(chosen, tmp_path / "cuda", planners=planners, progress=lambda *step: steps.append(step))
    for path in (tmp_path / "cpu").rglob("*.*"):
        assert (tmp_path / "cuda" / path.relative_to(tmp_path / "cpu")).read_bytes() == path.read_bytes()
    assert ("planning layers on the GPU", 24, 24) in steps  # dip and dip-ca, 6 caches, 2 layers
    assert ("planning layers", 12, 12) in steps  # dip-ca-approx


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--device", "cuda"], "device 'cuda': is not available here (Torch not compiled with CUDA enabled); use cpu"),
        (
            ["--device", "cuda", "--dask", "localhost:1"],
            "--dask localhost:1: a cluster has no use for this machine's GPU (--device cuda); leave out one",
        ),
        (["--device", "paper"], "Invalid value for '--device': 'paper' is not one of 'cpu', 'cuda'"),
    ],
)
def test_a_sweep_without_its_gpu_says_so_before_it_begins(cli_run, checkout, tmp_path, options, complaint):
    path = checkout / "examples/paper/phi-3-medium.yaml"
    status, printed, errors = cli_run("sweep", path, "--out", tmp_path / "out", *options)
    assert (status, printed, list(tmp_path.iterdir())) == (2, "", [])
    assert complaint in errors
    assert errors.count("\n") == 1


def test_a_sweep_without_triton_says_so_before_it_begins(cli_run, checkout, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("kernels", "batch", "trial", "planner"):
        monkeypatch.delitem(sys.modules, f"dipsim.gpu.{name}")
        monkeypatch.delattr(f"dipsim.gpu.{name}")
    path = checkout / "examples/paper/phi-3-medium.yaml"
    status, printed, errors = cli_run("sweep", path, "--out", tmp_path / "out", "--device", "cuda")
    assert (status, printed, list(tmp_path.iterdir())) == (2, "", [])
    assert errors == "error: triton is not installed; install dipsim with its extra `cuda` (see the README)\n"


def test_as_many_layers_together_as_keep_a_gpu_busy_and_fit(tiny_trace, monkeypatch):
    trace = tiny_trace()
    plans = [
        PlanBuilder(trace.shape, Setting(load_policy(name), size, eviction), trace.tokens, trace.sequence_starts)
        for name, eviction in (("dip", "lru"), ("dip", "belady"), ("dip-ca", "lfu"))
        for size in sizes(trace)
    ]
    members = [Member(each, caches) for each in plans for caches in each.caches]
    tried = {member.caches.key: Tried(1.0, 4) for member in members}
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def together(free):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, free))
        return planner._layers_together(members, tried, "cuda")

    assert together(10**12) == planner._layers_together(members, tried, "cpu") == -(-planner.ROWS // 3)
    assert together(0) == 1
    scores = 12 * 4 * (16 + 24)  # of both axes, shared by all
    masks = 12 * (2 + 6) * (16 + 24)  # lru and belady; the latter with the next uses
    own = 3 * 3 * ((6 + 12) * (16 + 24) + 4 * 12 * (2 * 3 + 2 * (5 + 5)))  # three sizes of three kinds
    assert together((scores + masks + own) * 7 / planner.MEMORY + 1) == 7
