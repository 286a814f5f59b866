"""What the shell completes: names, found without loading what they name."""

import os
import subprocess
import sys

import pytest

from dipsim.basics import assets
from dipsim.cli.complete import names
from dipsim.memory.eviction import RULES
from dipsim.storage.layout import LAYOUTS
from dipsim.storage.layouts import load_layout  # noqa: F401, which fills LAYOUTS


def test_names_are_those_that_commands_take():
    assert set(names("evictions")) == {name for name, rule in RULES.items() if rule.__module__.startswith("dipsim.")}
    shipped = {name for name, layout in LAYOUTS.items() if layout.__module__.startswith("dipsim.")}
    assert set(names("layouts")) == shipped | set(assets.names("layouts"))
    assert "dip-ca" in names("policies")
    assert names("devices") == sorted(names("devices"))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("run --device pi5", ["pi5-nvme", "pi5-sd"]),
        ("run --policy dip-", ["dip-ca", "dip-ca-approx", "dip-threshold"]),
        ("run --trace phi", ["phi-3-medium", "phi-3-mini"]),
        ("run --layout hot", ["hot-apart"]),
        ("run --eviction s", ["s3-fifo", "slru"]),
        ("learn-layout small --scale-to phi-3-me", ["phi-3-medium"]),
        ("fit-recipe smollm2-135m-", ["smollm2-135m-synthetic"]),
        ("list pre", ["prefetchers"]),
        ("run --timel", ["--timeline"]),
        ("swe", ["sweep"]),
        ("run --device ./ow", []),  # the shell's own
    ],
)
def test_the_shell_is_told(cli_run, monkeypatch, words, found):
    monkeypatch.setenv("_DIPSIM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"dipsim {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    assert cli_run()[:2] == (0, "\n".join(found) + "\n")


def test_completing_loads_nothing_heavy(checkout):
    code = (
        "import sys, runpy; sys.argv = ['dipsim']\n"
        "try: runpy.run_module('dipsim', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'pandas', 'numpy', 'matplotlib', 'simpy') if m in sys.modules], file=sys.stderr)"
    )
    told = {"_DIPSIM_COMPLETE": "complete_bash", "COMP_WORDS": "dipsim run --layout col", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, env=os.environ | told, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("columns\n", "[]\n")
