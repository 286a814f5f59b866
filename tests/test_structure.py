"""What keeps the house in shape: which package may import which, and what start-up may cost."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dipsim"
MAY_IMPORT = {  # docs/background/design.md tells the story; a package imports itself, and these
    "basics": set(),
    "workload": {"basics"},
    "sparsity": {"basics", "workload"},
    "memory": {"basics", "workload", "sparsity"},
    "storage": {"basics", "workload"},
    "planning": {"basics", "workload", "sparsity", "memory", "storage"},
    "timing": {"basics", "planning", "storage"},
    "clock": {"basics", "workload", "sparsity", "planning", "timing"},
    "results": {"basics", "workload", "sparsity", "storage", "planning", "timing"},
    "figures": {"basics", "results"},
    "report": {"basics", "timing", "results", "figures"},
    "study": {"basics", "workload", "sparsity", "memory", "storage", "planning", "timing", "clock", "results"},
    "machine": {"basics", "workload", "storage", "planning", "timing", "results", "study"},
    "gpu": {"basics", "workload", "sparsity", "memory", "storage", "planning"},
    "live": {"basics", "workload", "sparsity", "memory", "planning", "timing", "results", "study", "gpu"},
    "cli": {
        "basics",
        "workload",
        "sparsity",
        "storage",
        "planning",
        "timing",
        "results",
        "figures",
        "report",
        "study",
        "machine",
        "gpu",
        "live",
    },
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """The modules that a file imports, anywhere in it, unless only for type checking."""
    skipped = {
        inner
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in map(ast.unparse, node.body)
    }
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import | ast.ImportFrom) and ast.unparse(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in NAMES else node.module


def ours(path):
    return {name for name in imported(path) if name.startswith("dipsim.")}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_lies_below_it(package):
    below = MAY_IMPORT[package] | {package}
    for path in (PACKAGE / package).rglob("*.py"):
        for name in ours(path):
            assert name.split(".")[1] in below, f"{path.relative_to(PACKAGE)} imports {name}"


def test_every_package_has_its_place_and_uses_it():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(MAY_IMPORT)
    for package, below in MAY_IMPORT.items():
        used = {name.split(".")[1] for path in (PACKAGE / package).rglob("*.py") for name in ours(path)}
        assert below - used == set(), f"{package} no longer imports these"


def test_no_module_is_in_a_circle():
    graph = {module_name(path): ours(path) - {module_name(path)} for path in MODULES if path.name != "__init__.py"}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_figures_come_from_nothing_that_a_sweeps_key_leaves_out():
    from dipsim.study.keys import NO_FIGURES

    assert set(NO_FIGURES) < set(MAY_IMPORT)
    for package in set(MAY_IMPORT) - set(NO_FIGURES):
        assert not MAY_IMPORT[package] & set(NO_FIGURES), package


def test_two_modules_know_simpy_and_only_gpu_and_live_know_torch(checkout):
    knows = {
        path: {name.split(".")[0] for name in imported(path)} for path in (*MODULES, *checkout.glob("policies/*.py"))
    }
    assert {path.name for path, names in knows.items() if "simpy" in names} == {"engine.py", "server.py"}
    heavy = {path for path, names in knows.items() if {"torch", "transformers", "triton", "peft"} & names}
    assert {path.parent.name for path in heavy} == {"gpu", "live"}


def test_only_the_command_line_prints_or_exits():
    for path in MODULES:
        blocks = [n for n in tree_of(path).body if not (isinstance(n, ast.If) and "__main__" in ast.unparse(n.test))]
        calls = {ast.unparse(n.func) for block in blocks for n in ast.walk(block) if isinstance(n, ast.Call)}
        assert path.parent.name == "cli" or not calls & {"print", "exit", "sys.exit", "os._exit", "quit"}, path


def test_public_names_are_listed_and_found():
    import dipsim

    told = re.findall(r"^    (\w+)  +\w.+$", dipsim.__doc__, flags=re.MULTILINE)
    assert sorted(told) == sorted(set(dipsim.__all__) - {"__version__"})  # a line each, which `help(dipsim)` shows
    assert dir(dipsim) == sorted(dipsim.__all__)
    for name in dipsim.__all__:
        assert getattr(dipsim, name).__doc__ or name == "__version__", name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        dipsim.nothing  # noqa: B018


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list", "policies"]])
def test_help_loads_nothing_heavy(arguments, checkout):
    code = (
        f"import sys, runpy; sys.argv = ['dipsim', *{arguments!r}]\n"
        "try: runpy.run_module('dipsim', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'pandas', 'matplotlib', 'simpy') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
