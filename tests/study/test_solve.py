"""What `solve` answers: the value at which a target is just reached, and what speaks against it."""

import math

import pandas as pd
import pytest
import yaml
from hand import DEVICE, hand_trace

from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.basics.units import parse as quantity
from dipsim.study import passes
from dipsim.study.experiment import Experiment
from dipsim.study.question import TOLERANCE, Target, Unknown
from dipsim.study.run import run
from dipsim.study.solve import solve

PLUGIN = """from dipsim import Group, Policy

class Valley(Policy):
    x: float = 0.5
    def groups(self, shape):
        return [Group("neuron", ("down_proj",), "neuron", 8 - int(14 * abs(self.x - 0.5)))]
    def scores(self, group, acts):
        return abs(acts.glu)
"""


@pytest.fixture
def experiment(tmp_path):
    """Makes an experiment with the trace and the device that can be worked out on paper; reads cost their bytes."""

    def make(flash=None, **fields):
        device = DEVICE | {"flash": flash or {"read_bandwidth": "1 MB/s"}}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(device))
        data = {"trace": str(hand_trace(tmp_path).path), "device": str(tmp_path / "mine.yaml"), "start": "cold"}
        data |= {"dram": "300 B", "policies": ["dense"]}
        return parse(Experiment, data | fields, "exp.yaml")

    return make


@pytest.fixture
def planned(monkeypatch):
    """Counts the plans made of layers."""
    made = []
    plan = passes.plan

    def count(trace, settings, *rest, **options):
        made.extend(settings)
        return plan(trace, settings, *rest, **options)

    monkeypatch.setattr(passes, "plan", count)
    return made


def summary(experiment, **fields):
    return run(experiment.model_copy(update=fields))[0].summary()


def test_dram_for_dense_lies_on_the_line_of_what_must_be_streamed(experiment, tmp_path):
    chosen = experiment()
    low, high = 304.0, 320.0
    slow, fast = (summary(chosen, dram=size)["latency_s"]["mean"] for size in (low, high))
    wanted = low + 0.4 * (high - low)
    limit = slow + 0.4 * (fast - slow)  # a byte more in DRAM is a byte less of Flash
    (answer,) = solve(chosen, Target.read(f"mean {1e6 * limit:.9g} us"), "dram", tmp_path / "out")
    found = quantity(answer.value, "size")
    assert wanted * (1 - 1e-3) <= found <= wanted * (1 + TOLERANCE)
    assert answer.row["latency_mean_s"] <= limit < summary(chosen, dram=found / (1 + TOLERANCE))["latency_s"]["mean"]
    assert answer.note == ""


def test_flash_bandwidth_is_what_the_bytes_need(experiment, tmp_path, planned):
    chosen = experiment(policies=["dense", {"dip": {"keep": 0.5}}])
    answers = solve(chosen, Target.read("500 tokens/s"), "flash.read_bandwidth", tmp_path / "out")
    for answer, result in zip(answers, run(chosen), strict=True):
        told = result.summary()
        flash = told["parts_s"]["flash"]
        wanted = told["flash_bytes_per_token"] / (1 / 500 - told["latency_s"]["mean"] + flash)
        assert wanted <= quantity(answer.value, "bandwidth") <= wanted * (1 + TOLERANCE)
    assert [answer.policy for answer in answers] == ["dense", "dip(keep=0.5)"]
    assert len(planned) == 4  # a plan serves all values of a round, and there are two rounds


def test_iops_are_what_commands_leave_time_for(experiment, tmp_path):
    chosen = experiment(flash=DEVICE["flash"], policies=[{"dip": {"keep": 0.5}}], read_through=False)
    told = summary(chosen)
    reads, mean = told["flash_reads_per_token"], told["latency_s"]["mean"]
    limit = mean + 4e-6 * reads  # a command of 14 us instead of 10
    (answer,) = solve(chosen, Target.read(f"{1 / limit:.9g} tokens/s"), "iops", tmp_path / "out")
    assert 1 / 14e-6 * (1 - 1e-4) <= quantity(answer.value, "rate") <= 1 / 14e-6 * (1 + TOLERANCE)


def test_of_a_parameter_the_largest_value_is_found_and_others_are_left_out(experiment, tmp_path):
    chosen = experiment(policies=["dense", {"dip": {"keep": 0.5}}], dram="290 B")
    limit = 0.999 * summary(chosen, policies=chosen.policies[1:])["tokens_per_s"]
    (answer,) = solve(chosen, Target.read(f"{limit:.9g} tokens/s"), "dip.keep", tmp_path / "out", low="0.1", high="1")
    assert answer.policy == "dip"
    assert 0.5 <= float(answer.value) < 0.75
    samples = pd.read_csv(tmp_path / "out" / "samples.csv")
    assert samples["reached"].tolist() == (samples["value"] <= float(answer.value)).tolist()
    assert samples["value"].min() == 0.1
    assert samples["value"].max() == 1


def test_energy_is_a_target_too(experiment, tmp_path):
    chosen = experiment()
    low, high = (summary(chosen, dram=size)["energy_j_per_token"] for size in (320.0, 304.0))
    (answer,) = solve(chosen, Target.read(f"{1e6 * (low + high) / 2:.9g} uJ/token"), "dram", tmp_path / "out")
    assert 312 * (1 - 1e-3) <= quantity(answer.value, "size") <= 312 * (1 + TOLERANCE)


def test_what_is_not_monotone_is_told(experiment, tmp_path):
    (tmp_path / "valley.py").write_text(PLUGIN)
    chosen = experiment(policies=[str(tmp_path / "valley.py")], dram="290 B")
    best, worst = (
        summary(chosen, policies=(chosen.policies[0].model_copy(update={"parameters": {"x": x}}),))["tokens_per_s"]
        for x in (0.05, 0.5)
    )
    target = Target.read(f"{math.sqrt(best * worst):.9g} tokens/s")
    (answer,) = solve(chosen, target, "valley.x", tmp_path / "out")
    assert "not monotone: tokens_per_s goes from" in answer.note
    assert "there may be other answers" in answer.note
    assert 0.05 < float(answer.value) < 0.5 or 0.5 < float(answer.value) < 1


@pytest.mark.parametrize(
    ("target", "value", "nearest", "note"),
    [
        ("1 tokens/s", "310 B", 310, "reached everywhere from 310 B to 350 B"),
        ("10000000 tokens/s", "", 350, "not reached; nearest at 350 B, an end of the range"),
    ],
)
def test_where_there_is_no_crossing_it_says_so(experiment, tmp_path, target, value, nearest, note):
    (answer,) = solve(experiment(), Target.read(target), "dram", tmp_path / "out", low="310 B", high="350 B")
    assert (answer.note, answer.value, answer.row["dram_bytes"]) == (note, value, nearest)


def test_the_whole_curve_of_a_flash_is_scaled(experiment, tmp_path):
    curve = [["1 B", "0.5 MB/s"], ["100 B", "1 MB/s"]]
    chosen = experiment(flash={"read_curve": curve}, policies=["dense"])
    (answer,) = solve(chosen, Target.read("500 tokens/s"), "flash.read_bandwidth", tmp_path / "out")
    found = quantity(answer.value, "bandwidth")
    scaled = [[size, f"{quantity(rate, 'bandwidth') * found / 1e6!r} B/s"] for size, rate in curve]
    assert summary(chosen, hardware={"flash.read_curve": scaled})["tokens_per_s"] == answer.row["tokens_per_s"] >= 500
    assert answer.row["flash_bandwidth_bytes_per_s"] == pytest.approx(found)


def test_what_was_found_is_not_computed_again(experiment, tmp_path, planned):
    chosen = experiment(policies=[{"dip": {"keep": 0.5}}])
    target = Target.read(f"{summary(chosen, dram=300.0)['tokens_per_s']:.9g} tokens/s")
    first = solve(chosen, target, "dram", tmp_path / "out")
    made = len(planned)
    tables = [(tmp_path / "out" / name).read_bytes() for name in ("solve.csv", "samples.csv")]
    assert solve(chosen, target, "dram", tmp_path / "out") == first
    assert len(planned) == made > 5
    assert [(tmp_path / "out" / name).read_bytes() for name in ("solve.csv", "samples.csv")] == tables


@pytest.mark.slow
def test_perplexity_is_within_beyond_or_not_measured(tmp_path):
    policies = ["dense", {"magnitude": {"fraction": 0.5}}, {"dip": {"keep": 0.77}}]
    chosen = parse(Experiment, {"trace": "smollm2-135m", "policies": policies, "tokens": 2}, "exp.yaml")
    answers = solve(chosen, Target.read("60 tokens/s"), "dram", tmp_path, low="60 MB", high="70 MB", within=0.5)
    assert [answer.within for answer in answers] == [True, False, None]
    assert [answer.row["perplexity_source"] for answer in answers] == ["measured", "measured", "not measured"]
    wide = solve(chosen, Target.read("60 tokens/s"), "dram", tmp_path, low="60 MB", high="70 MB", within=0.7)
    assert [answer.within for answer in wide] == [True, True, None]


@pytest.mark.slow
def test_measured_values_of_a_parameter_are_tried_and_the_best_is_named(tmp_path):
    data = {"trace": "smollm2-135m", "policies": [{"dip": {"keep": 0.75}}], "tokens": 2, "dram": "60 MB"}
    chosen = parse(Experiment, data, "exp.yaml")
    (answer,) = solve(chosen, Target.read("57 tokens/s"), "dip.keep", tmp_path, low="0.7", high="0.9", within=1)
    samples = pd.read_csv(tmp_path / "samples.csv").set_index("value")
    measured = samples[samples["perplexity"].notna()]
    assert {0.75, 0.8, 0.9} <= set(measured.index)
    best = measured[measured["reached"]].index.max()  # of dip, the more is kept the better
    assert answer.note.endswith(f"{best:g} (perplexity {float(measured.loc[best, 'perplexity']):.2f})")


def test_values_to_try_enclose_the_root_of_the_line_and_the_middle():
    unknown = Unknown("dram", "size", 1e6, 1e8)
    assert unknown.spread(3) == [1e6, 1e7, 1e8]
    near = 1e6 * 100 ** (1 / 3)
    tried = unknown.between(1e6, -1.0, 1e8, 2.0)
    assert tried == pytest.approx([near / 1.0025, near * 1.0025, 1e7], rel=5e-4)
    assert Unknown("streams", None, 1, 8, whole=True).spread(5) == [1, 2, 3, 5, 8]


@pytest.mark.parametrize(
    ("target", "column", "value"),
    [
        ("12.5 tokens/s", "tokens_per_s", 12.5),
        ("p95 80 ms", "latency_p95_s", 0.08),
        ("mean 3 us", "latency_mean_s", 3e-6),
        ("20 mJ/token", "energy_j_per_token", 0.02),
    ],
)
def test_targets(target, column, value):
    read = Target.read(target)
    assert (read.column, read.value) == (column, pytest.approx(value))
    assert read.gap({column: value}) == pytest.approx(0)
    assert (read.gap({column: 2 * value}) > 0) == (column == "tokens_per_s")


def test_a_device_without_energy_has_no_answer_for_it(tmp_path):
    chosen = parse(Experiment, {"trace": "smollm2-135m", "policies": ["dense"], "tokens": 2}, "exp.yaml")
    with pytest.raises(InputError, match="does not say what energy it takes; add energy"):
        solve(chosen, Target.read("20 mJ/token"), "dram", tmp_path)


def test_the_command_answers_in_a_table(experiment, tmp_path, cli_run):
    path = tmp_path / "exp.yaml"
    path.write_text(yaml.safe_dump(experiment().resolved()))
    status, out, err = cli_run("solve", path, "--target", "p95 2 ms", "--out", tmp_path / "out", "--within", "0.3")
    assert (status, err) == (0, "")
    row = next(line for line in out.splitlines() if line.startswith(" dense")).split()
    answer = pd.read_csv(tmp_path / "out" / "solve.csv").iloc[0]
    assert " ".join(row[1:3]) == answer["answer"]
    assert float(row[4]) == pytest.approx(1e3 * answer["latency_p95_s"], rel=1e-3)
    assert row[-4:] == ["not", "measured", "not", "measured"]
    assert (tmp_path / "out" / "solve.svg").read_text().count("2 ms") >= 1
    drawn = (tmp_path / "out" / "solve.png").read_bytes()
    (tmp_path / "out" / "solve.png").unlink()
    assert cli_run("plot", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "solve.png").read_bytes() == drawn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "10 MB"], "--target"),
        (["--target", "p95 80"], "has no unit"),
        (["--for", "nothing"], "has no value to start from"),
        (["--for", "dram", "--from", "1"], "has no unit"),
        (["--for", "dram", "--from", "2 MB", "--to", "1 MB"], "--for dram: 2 MB to 1 MB is no range"),
        (["--for", "dram", "--to", "60 GB"], "--from and --to must be within "),
        (["--for", "dram", "--from", "1 kB"], "which must fit, and "),
        (["--for", "dram", "--dram", "60 MB"], "--dram: is what is looked for; leave it out"),
        (["--for", "nothing.here", "--from", "1", "--to", "2"], "neither a field of the experiment"),
        (["--within", "-1"], "must be 0 or more"),
        (["--for", "dramm"], "(did you mean dram?)"),
        (["--for", "hot"], "is no number"),
        (["--for", "iops", "--device", "pi5-nvme"], "described by a curve; look for flash.read_bandwidth"),
        (["--target", "20 mJ/token"], "add energy"),
        (["examples/hardware/start.yaml"], "leave the sweep out"),
    ],
)
def test_what_cannot_be_asked_is_one_line(cli_run, tmp_path, checkout, monkeypatch, options, message):
    monkeypatch.chdir(checkout)
    status, out, err = cli_run("solve", "--out", tmp_path / "out", *options)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_policies_differ_in_what_is_not_looked_for(experiment, tmp_path):
    policies = [{"dip-ca": {"keep": 0.5, "gamma": gamma}} for gamma in (0.5, 0.2)]
    answers = solve(experiment(policies=policies), Target.read("500 tokens/s"), "dip-ca.keep", tmp_path / "out")
    assert [answer.policy for answer in answers] == ["dip-ca(gamma=0.5)", "dip-ca(gamma=0.2)"]


def test_bits_are_looked_for_as_real_numbers(experiment, tmp_path):
    """Flash brings what DRAM does not hold of 96 B of weights of the MLP at 4 bits, 24 B a bit."""
    chosen = experiment(dram="400 B")
    slow, fast = (summary(chosen.model_copy(update={"bits": bits(n)}))["latency_s"]["mean"] for n in (8, 6))
    limit = f"mean {1e6 * (slow + fast) / 2:.9g} us"
    (answer,) = solve(chosen, Target.read(limit), "bits.mlp", tmp_path / "out", low="4.5", high="8")
    assert 7 * (1 - TOLERANCE) <= float(answer.value) <= 7 * (1 + 1e-3)


def bits(mlp):
    return parse(Experiment, {"trace": "t", "policies": ["dense"], "bits": {"mlp": mlp}}, "").bits


def test_a_size_of_caches_gives_way_to_that_of_all(experiment, tmp_path):
    data = experiment().resolved() | {"dram": None, "cache": {"size": "20 B"}}
    chosen = parse(Experiment, data, "exp.yaml")
    (answer,) = solve(chosen, Target.read("900 tokens/s"), "dram", tmp_path / "out")
    assert answer == solve(experiment(), Target.read("900 tokens/s"), "dram", tmp_path / "other")[0]


def test_energy_may_be_none_at_all(experiment, tmp_path):
    device = DEVICE | {"energy": {"flash": "0 J/B", "dram": "0 J/B", "compute": "0 J/FLOP"}}
    chosen = experiment()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(device))
    (answer,) = solve(chosen, Target.read("20 mJ/token"), "dram", tmp_path / "out")
    assert answer.note.startswith("reached everywhere")


def test_the_price_is_compared_with_dense_of_the_same_bits(tmp_path):
    chosen = {"trace": "smollm2-135m", "policies": ["dense"], "tokens": 2, "bits": {"mlp": 8}}
    target = Target.read("20 tokens/s")
    (answer,) = solve(parse(Experiment, chosen, ""), target, "dram.bandwidth", tmp_path, within=0.5)
    assert answer.within is None


@pytest.mark.slow
def test_a_folder_holds_one_kind_of_results(experiment, tmp_path, cli_run):
    path = tmp_path / "exp.yaml"
    path.write_text(yaml.safe_dump(experiment().resolved()))
    out = tmp_path / "out"
    assert cli_run("run", path, "--out", out)[0] == 0
    assert cli_run("solve", path, "--target", "300 tokens/s", "--out", out)[0] == 0
    assert not (out / "summary.json").exists()
    assert cli_run("run", path, "--out", out)[0] == 0
    assert not (out / "solve.csv").exists()
    assert not (out / "solve.png").exists()
