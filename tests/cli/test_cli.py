"""The command line: what it prints, and that bad input is one line, exit 2, and leaves nothing behind."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml
from rich.console import Console

from dipsim.basics import assets
from dipsim.basics.files import sha256
from dipsim.cli import main
from dipsim.results import tables as report
from dipsim.sparsity.plugins import load_policy
from dipsim.study import run as studied
from dipsim.study.run import simulate
from dipsim.timing.device import Device
from dipsim.workload import wikitext


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_trace):
    """An empty folder to work in, with a tiny trace, an experiment on it and a device."""
    monkeypatch.chdir(tmp_path)
    tiny_trace()
    experiment = {"trace": "./tiny.safetensors", "dram": {"mlp_fraction": 0.5}, "policies": ["dense", "dip"]}
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(experiment))
    device = {"name": "own", "flash": {"read_bandwidth": "2 GB/s"}, "dram": {"capacity": "1 GB", "bandwidth": "9 GB/s"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(device))
    return tmp_path


def test_run_writes_a_folder_and_prints_a_table(here, cli_run):
    status, out, _ = cli_run("run", "exp.yaml", "--timeline")
    assert status == 0
    assert "tokens/s" in out
    assert out.count("not measured") == 2
    written = {path.name for path in (here / "results/exp").iterdir()}
    assert {"summary.json", "tokens.csv", "experiment.yaml", "provenance.json", "timeline.json"} <= written
    assert {"latency.png", "policies.png", "hit_rate_by_layer.png", "token_gantt.png"} <= written
    assert not any(name.startswith(".") for name in written)


def test_without_a_file_the_folder_is_named_after_trace_and_device(here, cli_run):
    """So what somebody tries does not take the place of the quickstart's results."""
    (here / "traces").mkdir()
    (here / "tiny.safetensors").rename(here / "traces/tiny-0.5b.safetensors")
    flags = ["--trace", "traces/tiny-0.5b.safetensors", "--device", "./own.yaml", "--policy", "dense", "--tokens", 4]
    status, out, _ = cli_run("run", *flags)
    assert status == 0
    assert "results/tiny-0.5b-on-own: summary.json" in out
    assert [path.name for path in (here / "results").iterdir()] == ["tiny-0.5b-on-own"]


@pytest.mark.slow
def test_flags_change_the_experiment(here, cli_run):
    flags = ["--device", "./own.yaml", "--policy", "dip", "--policy", "dip-ca", "--set", "dip.keep=0.9"]
    flags += ["--set", "dip-ca.gamma=0.2", "--dram", "3 kB", "--eviction", "lru", "--timing", "pipelined"]
    status, _, err = cli_run("run", "exp.yaml", *flags, "--tokens", 5, "--out", "there")
    assert (status, err) == (0, "")
    summaries = json.loads((here / "there/summary.json").read_text())
    assert [s["policy"] for s in summaries] == ["dip(keep=0.9)", "dip-ca(gamma=0.2)"]
    for summary in summaries:
        assert (summary["device"], summary["tokens"], summary["warm_up_tokens"]) == ("own", 3, 2)
        assert summary["dram_bytes"] == 3000
        assert (summary["eviction"], summary["timing"]) == ("lru", "pipelined")


@pytest.mark.slow
def test_plot_draws_again(here, cli_run):
    cli_run("run", "exp.yaml")
    figure = here / "results/exp/latency.png"
    figure.unlink()
    status, out, _ = cli_run("plot", "results/exp")
    assert status == 0
    assert "latency.png" in out
    assert figure.exists()


def test_a_report_is_written_into_the_folder_or_where_it_is_asked_for(here, cli_run):
    (here / "in").mkdir()
    rows = ["trace,model,device,layout,start,eviction,timing,prompt,read_through,stream_static,policy,perplexity,key"]
    rows[0] += ",dram_bytes,flash_bandwidth_bytes_per_s,tokens,tokens_per_s,mlp_fraction_in_dram,hit_rate"
    rows += ["t,m,d,columns,warm,lfu,serial,0,True,False,dense,not measured,k,1e9,2e9,8,12.5,0.5,0.25"]
    (here / "in/sweep.csv").write_text(f"{rows[0]},flash_utilisation\n{rows[1]},0.9\n")
    assert cli_run("report", "in") == (0, "in/report.html\n", "")
    assert cli_run("report", "in", "--out", "page.html") == (0, "page.html\n", "")
    text = (here / "page.html").read_text()
    assert "12.5" in text
    assert text == (here / "in/report.html").read_text()


@pytest.mark.slow
def test_a_layout_is_learned_checked_and_used(here, cli_run):
    status, out, err = cli_run("learn-layout", "tiny.safetensors", "--out", "x.layout.safetensors",
                               "--set", "dip.keep=0.6", "--tokens", 3, "--device", "oneplus-12")  # fmt: skip
    assert (status, err) == (0, "")
    assert "reads and" in out
    assert "on 9 tokens that it was not learned from" in out
    assert cli_run("check", "x.layout.safetensors")[1].endswith(
        "ok, a layout: coactivation for dip(keep=0.6) on tiny\n"
    )
    flags = ["--layout", "./x.layout.safetensors", "--start", "warm", "--policy", "dip"]
    assert cli_run("run", "exp.yaml", *flags, "--eviction", "pinned")[0] == 0
    (summary,) = json.loads((here / "results/exp/summary.json").read_text())
    assert (summary["layout"], summary["eviction"]) == ("./x.layout.safetensors", "pinned")
    assert cli_run("run", "exp.yaml", *flags, "--eviction", "pinned", "--start", "cold")[0] == 2
    status, _, err = cli_run("learn-layout", "tiny.safetensors", "--out", "x.safetensors")
    assert (status, "a layout must end in .layout.safetensors" in err) == (2, True)


@pytest.mark.parametrize("kind", ["devices", "policies", "traces", "layouts"])
def test_list(kind, cli_run):
    status, out, _ = cli_run("list", kind)
    assert status == 0
    shown = {"devices": "oneplus-12", "policies": "dip-ca", "traces": "smollm2-135m", "layouts": "coactivation"}
    assert shown[kind] in out


def test_layouts_are_listed_by_a_process_that_knows_of_none_yet(checkout):
    command = [sys.executable, "-m", "dipsim", "list", "layouts"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    for name in ("auto", "coactivation", "columns", "popularity", "smollm2-135m.oneplus-12"):
        assert f"\n{name} " in done.stdout


@pytest.mark.parametrize("file", ["exp.yaml", "own.yaml", "tiny.safetensors", "mine.py"])
def test_check_accepts(here, cli_run, file):
    (here / "mine.py").write_text("from dipsim import Policy\nclass Mine(Policy): pass\n")
    status, out, _ = cli_run("check", file)
    assert status == 0
    assert out.startswith(f"{file}: ok")


def test_check_knows_a_prefetcher_from_a_policy(here, cli_run):
    (here / "mine.py").write_text("from dipsim import Prefetcher\nclass Mine(Prefetcher):\n    least: int = 3\n")
    assert cli_run("check", "mine.py")[:2] == (0, "mine.py: ok, a prefetcher: mine\n")
    (here / "mine.py").write_text("x = 1\n")
    problem = "must define exactly one subclass of dipsim.Policy or dipsim.Prefetcher (found none)"
    assert cli_run("check", "mine.py")[2] == f"error: mine.py: {problem}\n"


def test_check_names_what_it_is_about_to_run(here, cli_run):
    """Loading a policy is running its file, also where it cannot be used."""
    (here / "mine.py").write_text("print('running')\nfrom dipsim import Policy\nclass Mine(Policy): pass\n")
    (here / "ahead.py").write_text("from dipsim import Prefetcher\nprint('ahead')\n1 / 0\n")
    exp = (here / "exp.yaml").read_text().replace("- dip", "- mine.py\n- dip")
    (here / "two.yaml").write_text(f"{exp}\nprefetch: {{by: ahead.py}}\n")
    status, out, err = cli_run("check", "two.yaml")
    assert status == 2
    assert out.splitlines()[:2] == ["mine.py: is loaded now, which runs it", "ahead.py: is loaded now, which runs it"]
    assert "running" in out.splitlines()[2:]
    assert err.count("\n") == 1


MINE = """from dipsim import Group, Policy
class Mine(Policy):
    fraction: float%s
    def groups(self, shape):
        %s
    def scores(self, group, acts):
        return %s
"""
DENSE = 'return [Group("neuron", ("down_proj",), "neuron", int(self.fraction * shape.intermediate_size))]'


@pytest.mark.parametrize(
    ("default", "groups", "scores", "said"),
    [
        (" = 0.5", DENSE, "abs(acts.glu)", "mine.py: ok, a policy: mine, tried on smollm2-135m"),
        (
            " = 0.5",
            DENSE,
            "abs(acts.glue)",
            "TRIED: scores failed in line 7: AttributeError: ",
        ),
        (
            " = 0.5",
            DENSE,
            "abs(acts.glu)[:1]",
            "TRIED: scores of group neuron must be numbers",
        ),
        (" = 1.5", DENSE, "abs(acts.glu)", "TRIED: group neuron: k"),
        (
            " = 0.5",
            "shape",
            "1",
            "TRIED: groups failed: TypeError",
        ),
        ("", DENSE, "abs(acts.glu)", "mine.py: ok, a policy that needs fraction, so it was not tried"),
    ],
)
def test_check_tries_a_policy(tmp_path, cli_run, monkeypatch, default, groups, scores, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE % (default, groups, scores))
    status, out, err = cli_run("check", "mine.py")
    assert (out + err).startswith(said.replace("TRIED: ", "error: mine.py: tried on smollm2-135m: policy mine: "))
    assert (status, (out + err).count("\n")) == (2 if "TRIED" in said else 0, 1)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            "static_bytes(self, shape): return float('nan')",
            "static_bytes must be a number of bytes, 0 or more (got",
        ),
        ("static_bytes(self, shape): return 'x'", "static_bytes failed: ValueError"),
        ("groups(self, shape): raise SystemExit(3)", "groups failed in line 3: SystemExit: 3"),
    ],
)
def test_check_catches_whatever_a_policy_does(tmp_path, cli_run, monkeypatch, method, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(f"from dipsim import Policy\nclass Mine(Policy):\n    def {method}\n")
    status, out, err = cli_run("check", "mine.py", "--trace", "phi-3-mini")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: mine.py: tried on phi-3-mini: policy mine: {said}")


@pytest.mark.parametrize("name", ["experts", "low-bit", "worth", "dip-ca", "precision"])
def test_shipped_policies_pass(cli_run, name):
    tried = {"worth": "smollm2-135m", "dip-ca": "smollm2-135m"}.get(name, "gpt-oss-20b")
    ends = "needs calibration, so it was not tried" if name == "precision" else f"{name}, tried on {tried}"
    assert cli_run("check", assets.find("policies", name))[1].endswith(ends + "\n")


@pytest.mark.parametrize("command", ["run", "check"])
def test_what_an_experiment_cannot_do_names_its_file_once(here, cli_run, command):
    experiment = yaml.safe_load((here / "exp.yaml").read_text())
    (here / "exp.yaml").write_text(yaml.safe_dump(experiment | {"prefetch": {"by": "popular", "buffer": "1 B"}}))
    status, _, err = cli_run(command, "exp.yaml")
    assert (status, err.count("exp.yaml"), err.count("\n")) == (2, 1, 1)
    assert err.startswith("error: exp.yaml: prefetch: buffer: 1 B does not hold the ")
    (here / "exp.yaml").write_text("trace: 3\n")
    lines = cli_run(command, "exp.yaml")[2].splitlines()
    assert lines[0].removesuffix(" (and 1 more)") == "error: exp.yaml: trace: must be a valid string (got 3) (line 1)"
    assert lines[1:] == ["error: exp.yaml: policies: is required but missing"] * (command == "check")
    assert not (here / "results").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("swept", "missing"), [({"prefetch.units": [1, 2], "dram": ["3 kB", "4 kB"]}, True),
                                                ({"prefetch.when": ["never", "idle"], "prefetch.units": [1, 2]}, True),
                                                ({"prefetch.when": ["never", "idle"], "prefetch.units": [1, 2],
                                                  "prefetch.lanes": [1, 2]}, False),
                                                ({"dram": ["3 kB", "4 kB"]}, False)])  # fmt: skip
def test_a_sweep_says_why_there_is_no_map_of_gains(here, cli_run, swept, missing):
    experiment = yaml.safe_load((here / "exp.yaml").read_text())
    own = {} if "dram" in swept and not missing else {"prefetch": {"by": "popular", "buffer": "200 B"}}
    (here / "exp.yaml").write_text(yaml.safe_dump(experiment | own | {"policies": ["dip"], "sweep": swept}))
    status, out, err = cli_run("sweep", "exp.yaml", "--workers", 1)
    assert (status, err) == (0, "")
    assert (out.count("No map of prefetch: sweep prefetch.when with never") == 1) is missing
    assert (here / "results/exp/prefetch.png").exists() is ("prefetch.lanes" in swept)


def test_text_says_whether_it_is_the_measured_one(here, cli_run, monkeypatch):
    (here / "raw.txt").write_text(" = Jam = \n \n It is jam . It 's sweet . \n")
    status, out, err = cli_run("text", "raw.txt", "--out", "jam.txt")
    assert (status, out, err.count("\n")) == (0, "jam.txt: 1 paragraphs\n", 1)
    assert err.startswith("warning: jam.txt: is not the text of the shipped figures")
    assert (here / "jam.txt").read_text() == "It is jam. It's sweet.\n"
    monkeypatch.setattr(wikitext, "MEASURED", {sha256(here / "jam.txt"): "jam"})
    known = (0, "jam.txt: 1 paragraphs, the jam split as it was measured\n", "")
    assert cli_run("text", "raw.txt", "--out", "jam.txt") == known


@pytest.mark.parametrize("of", ["device", "experiment"])
def test_schema_is_json_schema(of, cli_run):
    status, out, _ = cli_run("schema", of)
    assert status == 0
    assert json.loads(out)["type"] == "object"
    assert json.loads(out)["additionalProperties"] is False


def test_shipped_files_follow_the_schemas(checkout, cli_run):
    for of, folder in (("device", "devices"), ("experiment", "examples")):
        validator = jsonschema.Draft202012Validator(json.loads(cli_run("schema", of)[1]))
        for path in sorted((checkout / folder).glob("**/*.yaml")):
            validator.validate(yaml.safe_load(path.read_text()))


def test_paths_that_the_system_does_not_take_are_one_line(cli_run):
    for arguments in (("check", "a" * 300 + ".yaml"), ("run", "b" * 300 + ".yaml"), ("plot", "c" * 300)):
        status, out, error = cli_run(*arguments)
        assert (status, out) == (2, "")
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert "File name too long" in error


def test_what_a_complaint_quotes_reaches_no_terminal_raw(cli_run):
    status, _, error = cli_run("check", "a\x1b[31m.yaml")
    assert status == 2
    assert "\x1b" not in error
    assert "\\x1b[31m.yaml" in error


def test_output_that_cannot_be_written_is_one_line(checkout):
    command = [sys.executable, "-m", "dipsim", "list", "devices"]
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONIOENCODING": "ascii"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: output: No space left on device\n")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "oneplus-12" in done.stdout


@pytest.mark.parametrize("columns", [80, 200])
def test_the_table_loses_no_number_on_a_narrow_terminal(tiny_trace, columns):
    policy = load_policy("dip-ca", keep=0.75, gamma=0.5, fixed_top_n=16)
    result = simulate(tiny_trace(), policy, Device.load("paper"))
    console = Console(width=columns, file=io.StringIO())
    console.print(report.run_table([result]))
    text = console.file.getvalue()
    assert "not measured" in text
    assert f"{result.tokens_per_s:.2f}" in text
    assert "".join(line.split()[0] for line in text.splitlines()[4:] if line.strip()).startswith("dip-ca(keep=")


BAD = [
    (["run", "missing.yaml"], "missing.yaml: cannot be read"),
    (["run", "exp.yaml", "--dram", "60"], "command line: dram: '60' has no unit"),
    (["run", "exp.yaml", "--dram", "1 B"], "dram: 1 B is less than"),
    (["run", "exp.yaml", "--tokens", "99"], "tokens: 99 asked for"),
    (["run", "exp.yaml", "--tokens", "0"], "tokens"),
    (["run", "exp.yaml", "--tokens", "x"], "--tokens"),
    (
        ["run", "exp.yaml", "--policy", "dop"],
        "command line: policies: dop: no such policy (did you mean dip?); shipped: cache-prior, dense",
    ),
    (["run", "exp.yaml", "--policy", "dip-ca", "--eviction", "belady"], "belady needs to know"),
    (["run", "exp.yaml", "--set", "dip.keep=2"], "policy dip: keep"),
    (["run", "exp.yaml", "--set", "dip.kep=0.5"], "policy dip: kep: unknown key"),
    (["run", "exp.yaml", "--set", "nope.keep=0.5"], "--set nope.keep=0.5: write POLICY.PARAMETER=VALUE"),
    (["run", "exp.yaml", "--set", "dip.keep"], "--set dip.keep: write"),
    (["run", "exp.yaml", "--set", "dip.keep=[1"], "--set dip.keep=[1"),
    (["run", "exp.yaml", "--trace", "./own.yaml"], "own.yaml"),
    (["run", "exp.yaml", "--device", "./exp.yaml"], "exp.yaml: is an experiment, not a device"),
    (["run", "exp.yaml", "--out", "exp.yaml/below"], "cannot be written"),
    (["run", "exp.yaml", "--nope"], "No such option: --nope"),
    (["fly"], "No such command 'fly'"),
    (["list", "cars"], "cars"),
    (["check", "missing.yaml"], "missing.yaml: no such file"),
    (["check", "empty.yaml"], "empty.yaml: is empty"),
    (["check", "list.yaml"], "list.yaml: is a list"),
    (["check", "tag.yaml"], "tag.yaml: is not plain YAML"),
    (["check", "date.yaml"], "date.yaml: is not plain YAML"),
    (["check", "belady.yaml"], "belady needs to know"),
    (["check", "long.yaml"], "tokens: 9999 asked for"),
    (["run", "exp.yaml", "--set", "dip.keep=!!int abc"], "--set dip.keep=!!int abc: is not plain YAML"),
    (["run", "exp.yaml", "--set", "dip.keep=5e-324"], "policy dip: keep: 5e-324 would need p_glu"),
    (["run", "exp.yaml", "--trace", "x" * 300], "no such trace"),
    (["check", "nan.yaml"], "nan.yaml: flash.read_bandwidth"),
    (["run", "other.yaml"], "other.yaml: is a device, not an experiment; give the path of an experiment"),
    (["run", "tiny.safetensors"], "tiny.safetensors: is a file of tensors, not an experiment"),
    (["run", "--device", "exp.yaml"], "command line: device: exp.yaml: is an experiment, not a device"),
    (["run", "exp.yaml", "--trace", "other.yaml"], "command line: trace: other.yaml: is a device, not a recipe"),
    (["check", "cut.safetensors"], "cut.safetensors: not a readable safetensors file"),
    (["plot", "nowhere"], "nowhere"),
    (
        ["report", "nowhere"],
        "nowhere: has no sweep.csv, solve.csv, splits.csv, compare.csv, summary.json; give",
    ),
    (["report", "nowhere", "--out", "page.pdf"], "--out page.pdf: a report must end in .html"),
    (["recipe", "--shape", "config.json", "--out", "r.yaml", "--tokens", "0"], "recipe: tokens"),
    (["record", "--model", "x", "--text", "t.txt", "--out", "trace.bin"], "must end in .safetensors"),
    (["text", "exp.yaml", "--out", "t.txt"], "exp.yaml: is no split of WikiText-2"),
    (["text", "tiny.safetensors", "--out", "t.txt"], "tiny.safetensors: is not a UTF-8 text file"),
]


@pytest.mark.parametrize(
    ("arguments", "complaint"), BAD, ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else ""
)
def test_bad_input_is_one_line(here, cli_run, arguments, complaint):
    (here / "empty.yaml").write_text("")
    (here / "list.yaml").write_text("- a")
    (here / "tag.yaml").write_text("a: !!python/name:os.system")
    (here / "date.yaml").write_text("a: !!int abc")
    exp = (here / "exp.yaml").read_text()
    (here / "other.yaml").write_text("flash: {read_bandwidth: 1 GB/s}")
    (here / "belady.yaml").write_text(exp.replace("- dip", "- dip-ca") + "eviction: belady")
    (here / "long.yaml").write_text(exp + "tokens: 9999")
    (here / "nan.yaml").write_text(
        "{name: n, flash: {read_bandwidth: .nan}, dram: {capacity: 1 GB, bandwidth: 1 GB/s}}"
    )
    (here / "cut.safetensors").write_bytes((here / "tiny.safetensors").read_bytes()[:300])
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    (here / "config.json").write_text(json.dumps(sizes | {"vocab_size": 32}))
    before = sorted(path for path in here.rglob("*"))
    status, out, err = cli_run(*arguments)
    assert status == 2
    assert complaint in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(path for path in here.rglob("*")) == before


def test_ctrl_c_that_python_drops_comes_again(cli_run, monkeypatch):
    """An error in what runs when something is collected does not reach anybody."""

    class Collected:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    def interrupted(*_args, **_options):
        thing = Collected()
        del thing
        time.sleep(10)

    monkeypatch.setattr(studied, "run", interrupted)
    before = sys.unraisablehook
    assert cli_run("run") == (130, "", "error: interrupted\n")
    assert sys.unraisablehook is before


def test_ctrl_c_within_an_import_is_one_line(cli_run, monkeypatch):
    """Modules that are being imported make any error of it."""

    def interrupted(*_args, **_options):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as caught:
            raise RuntimeError("Error calling __set_name__") from caught

    monkeypatch.setattr(studied, "run", interrupted)
    assert cli_run("run") == (130, "", "error: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.setattr(studied, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main.main()
