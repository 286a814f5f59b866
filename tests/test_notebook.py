"""The example notebook is executed: its cells, in order, print and show what it says they do."""

import ast
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples/dipsim.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def executed(source, names):
    """What a cell prints, and the value of its last line if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(StringIO()) as printed:
        exec(compile(tree, "cell", "exec"), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return printed.getvalue(), value


@pytest.mark.slow
def test_cells_give_their_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "notebook"}
    shown = []
    for cell in CELLS:
        printed, value = executed("".join(cell["source"]), names)
        assert printed == "".join("".join(each["text"]) for each in cell["outputs"] if each["output_type"] == "stream")
        for output in cell["outputs"]:
            if output["output_type"] == "execute_result":
                assert repr(value) == "".join(output["data"]["text/plain"])
                shown += sorted(set(output["data"]) - {"text/plain"})
                if "text/html" in output["data"]:
                    assert value._repr_html_() == "".join(output["data"]["text/html"])
    assert shown == ["text/html", "image/png", "image/png"]


def test_the_notebook_is_small_and_was_executed():
    assert NOTEBOOK.stat().st_size < 300_000
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    assert all(cell["outputs"] for cell in CELLS)
