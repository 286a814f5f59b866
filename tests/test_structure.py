"""What keeps the code base in shape: who may import what, and what start-up may cost."""

import ast
import subprocess
import sys

import pytest


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def test_one_module_knows_simpy_and_only_live_knows_torch(checkout):
    package = checkout / "dipsim"
    assert [p.name for p in sorted(package.rglob("*.py")) if "simpy" in imports(p)] == ["engine.py"]
    outside = [
        *(p for p in package.rglob("*.py") if package / "live" not in p.parents),
        *checkout.glob("policies/*.py"),
    ]
    assert [p for p in outside if {"torch", "transformers"} & set(imports(p))] == []


def test_only_the_command_line_prints_or_exits(checkout):
    for path in (checkout / "dipsim").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        blocks = [n for n in tree.body if not (isinstance(n, ast.If) and "__main__" in ast.unparse(n.test))]
        calls = {ast.unparse(n.func) for block in blocks for n in ast.walk(block) if isinstance(n, ast.Call)}
        assert path.name in ("cli.py", "cli_live.py") or not calls & {
            "print",
            "exit",
            "sys.exit",
            "os._exit",
            "quit",
        }, path


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
