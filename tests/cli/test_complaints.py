"""What the command line says of bad input: all of it by `check`, the first of it by other commands, with its line."""

import pytest
import yaml

from dipsim.basics.errors import InputError

WRONG = """\
trace: smolm2-135m
device: papr
tokens: 0
policies:
- dense
- dip:
    kep: 0.5
- dop
- dip-ca: {gamma: 3}
layout: popularty
flash: 3
"""
SHIPPED = "; shipped: "


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_trace):
    monkeypatch.chdir(tmp_path)
    tiny_trace()
    return tmp_path


def told(err):
    """The lines on stderr, without the names of what is shipped."""
    return [line.partition(SHIPPED)[0] for line in err.splitlines()]


def test_check_tells_all_that_is_wrong_with_an_experiment(here, cli_run):
    (here / "exp.yaml").write_text(WRONG)
    status, out, err = cli_run("check", "exp.yaml")
    assert (status, out) == (2, "")
    lines = told(err)
    known = lines.pop().removeprefix("error: exp.yaml: layout: 'popularty' is not one of ")
    assert known.endswith("(did you mean popularity?) (line 10)")
    assert lines == [
        "error: exp.yaml: tokens: must be greater than 0 (got 0) (line 3)",
        "error: exp.yaml: flash: unknown key; remove it or check its spelling (line 11)",
        "error: exp.yaml: policy dip: kep: unknown key (did you mean keep?) (line 7)",
        "error: exp.yaml: policies: dop: no such policy (did you mean dip?)",
        "error: exp.yaml: policy dip-ca: gamma: must be less than or equal to 1 (got 3) (line 9)",
        "error: exp.yaml: trace: smolm2-135m: no such trace (did you mean smollm2-135m?)",
        "error: exp.yaml: device: papr: no such device (did you mean paper?)",
    ]
    assert [line.rpartition(" (")[2] for line in err.splitlines()[3:7]] == ["line 8)", "line 9)", "line 1)", "line 2)"]


def test_other_commands_tell_the_first_and_how_many_more_there_are(here, cli_run):
    (here / "exp.yaml").write_text(WRONG)
    assert cli_run("run", "exp.yaml")[::2] == (
        2, "error: exp.yaml: tokens: must be greater than 0 (got 0) (line 3) (and 1 more)\n",
    )  # fmt: skip


def test_check_tells_what_other_points_of_a_sweep_cannot_do(here, cli_run):
    (here / "grid.yaml").write_text("""\
trace: ./tiny.safetensors
policies: [dense, {dip: {}}]
sweep:
  dram: [2 kB, 100 B]
  dip.keep: [0.5, 7]
  device: [paper, papr]
""")
    status, _, err = cli_run("check", "grid.yaml")
    keep = "policy dip: keep: must be less than or equal to 1 (got 7) (line 5)"
    dram = "dram: 100 B is less than the "
    lines = told(err)
    assert (status, len(lines)) == (2, 3)
    assert lines[0] == "error: grid.yaml: point (dram: 2 kB, dip.keep: 0.5, device: papr): device: papr: no such device (did you mean paper?)"  # fmt: skip # noqa: E501
    assert lines[1] == f"error: grid.yaml: point (dram: 2 kB, dip.keep: 7, device: paper): {keep}"
    assert lines[2].startswith(f"error: grid.yaml: point (dram: 100 B, dip.keep: 0.5, device: paper): {dram}")
    assert err.splitlines()[0].endswith("(line 6)")
    assert err.splitlines()[2].endswith("(line 4)")
    assert cli_run("sweep", "grid.yaml")[2].endswith("(line 6) (and 2 more)\n")


def test_a_device_of_an_experiment_is_told_with_its_own_lines(here, cli_run):
    (here / "own.yaml").write_text("""\
name: own
flash:
  read_bandwith: 1 GB/s
dram: {capacity: 1 GB, bandwidth: 68}
""")
    (here / "exp.yaml").write_text("trace: ./tiny.safetensors\ndevice: own.yaml\npolicies: [dense]\n")
    lines = [
        "own.yaml: flash.read_bandwith: unknown key (did you mean read_bandwidth?) (line 3)",
        'own.yaml: dram.bandwidth: 68 has no unit; write it like "1.5 GB/s" (line 4)',
    ]
    assert cli_run("check", "own.yaml")[2].splitlines() == [f"error: {line}" for line in lines]
    assert cli_run("check", "exp.yaml")[2].splitlines() == [f"error: exp.yaml: device: {line}" for line in lines]
    assert cli_run("run", "exp.yaml")[2] == f"error: exp.yaml: device: {lines[0]} (and 1 more)\n"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--dram", "1 B"], "command line: dram: 1 B is less than the "),
        (["--cache", "x"], "command line: cache.size: 'x' is not a number with a unit"),
        (["--tokens", 99], "command line: tokens: 99 asked for"),
        (["--device", "papr"], "command line: device: papr: no such device (did you mean paper?)"),
        (["--policy", "dp"], "command line: policies: dp: no such policy (did you mean dip?)"),
        (["--set", "dip.kep=0.5"], "command line: policy dip: kep: unknown key (did you mean keep?)"),
        (["--set", "dpi.keep=0.5"], "--set dpi.keep=0.5: write POLICY.PARAMETER=VALUE with a policy of this run (dip"),
        (["--layout", "rws"], "command line: layout: 'rws' is not one of "),
        (["--policy", "dip-ca"], "exp.yaml: eviction: belady needs to know all masks beforehand"),
        (["--policy", "dense", "--timing", "serial"], "exp.yaml: prefetch.by: populr: no such prefetcher"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_wrong_is_where_its_field_was_given(here, cli_run, flags, complaint):
    experiment = {"trace": "./tiny.safetensors", "dram": {"mlp_fraction": 0.5}, "policies": ["dip", "dense"]}
    if "dip-ca" in flags:
        experiment["eviction"] = "belady"
    if "serial" in flags:
        experiment["prefetch"] = {"by": "populr"}
    (here / "exp.yaml").write_text(yaml.safe_dump(experiment))
    status, out, err = cli_run("run", "exp.yaml", *flags)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {complaint}")
    assert ("(line " in err) == (complaint.startswith("exp.yaml"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["rn"], "No such command 'rn'. Did you mean 'run'?; see `python -m dipsim --help`"),
        (["run", "--polcy", "x"], "--polcy (Possible options: --policy); see `python -m dipsim run --help`"),
        (["run", "--tokens", "x"], "see `python -m dipsim run --help`"),
        (["list", "device"], "see `python -m dipsim list --help`"),
        (["sweep"], "Missing argument 'experiment'; see `python -m dipsim sweep --help`"),
    ],
)  # fmt: skip
def test_what_is_not_understood_leads_to_the_help_of_its_command(cli_run, arguments, complaint):
    status, out, err = cli_run(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.endswith(f"{complaint}\n")


def test_a_file_of_many_mistakes_is_told_in_few_lines(here, cli_run):
    (here / "own.yaml").write_text("".join(f"key{index}: 1\n" for index in range(70)))
    lines = cli_run("check", "own.yaml")[2].splitlines()
    assert lines[1] == "error: own.yaml: flash: is required but missing"
    assert lines[3] == "error: own.yaml: key0: unknown key; remove it or check its spelling (line 1)"
    assert lines[50:] == ["error: and 23 more"]


def test_a_policy_chosen_on_the_command_line_keeps_what_the_file_gives_it(here, cli_run, monkeypatch):
    def run(experiment, *_):
        raise InputError(f"--policies {experiment.resolved()['policies']}")

    monkeypatch.setattr("dipsim.study.run.run", run)
    policies = ["dense", {"dip": {"keep": 0.6}}, {"dip": {"keep": 0.8}}, {"dip-ca": {"gamma": 0.3}}, {"./up.py": {}}]
    (here / "exp.yaml").write_text(yaml.safe_dump({"trace": "./tiny.safetensors", "policies": policies}))
    flags = ["--policy", "dip", "--policy", "dip_ca", "--policy", "up", "--set", "dip-ca.keep=0.4"]
    chosen = [{"dip": {"keep": 0.6}}, {"dip": {"keep": 0.8}}, {"dip-ca": {"gamma": 0.3, "keep": 0.4}}, "up"]
    assert cli_run("run", "exp.yaml", *flags)[2] == f"error: --policies {chosen}\n"
