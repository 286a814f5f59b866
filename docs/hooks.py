"""Hooks of the documentation: the import graph and the dictionary of columns are made from the code, and links out of
the site become text.
"""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dipsim.results import dictionary

PACKAGE = Path(__file__).resolve().parent.parent / "dipsim"


def imports() -> dict[str, set[str]]:
    """The packages that each package imports."""
    packages = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())
    found: dict[str, set[str]] = {name: set() for name in packages}
    for name in packages:
        for path in (PACKAGE / name).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                parts = (node.module or "").split(".") if isinstance(node, ast.ImportFrom) else []
                if parts[:1] == ["dipsim"] and len(parts) > 1 and parts[1] != name:
                    found[name].add(parts[1])
    return found


def reduced(found: dict[str, set[str]]) -> dict[str, set[str]]:
    """The imports that no longer path implies."""
    below = {name: set(direct) for name, direct in found.items()}
    for _ in found:  # as often as the longest path could need
        for reached in below.values():
            reached |= set().union(*(below[name] for name in reached))
    return {
        name: {each for each in direct if not any(each in below[other] for other in direct)}
        for name, direct in found.items()
    }


def draw(path: Path) -> None:
    """Draw the packages, each above all that it imports."""
    found = imports()
    height = dict(sorted(_heights(found).items(), key=lambda item: item[1]))
    rows = [[name for name in height if height[name] == row] for row in range(max(height.values()) + 1)]
    place = {name: (2.0 * (i - (len(row) - 1) / 2), height[name]) for row in rows for i, name in enumerate(row)}
    figure = Figure(figsize=(6, 0.8 * len(rows)))
    axes = figure.add_axes((0, 0, 1, 1))
    for name, direct in reduced(found).items():
        for each in direct:
            axes.annotate("", place[each], place[name], arrowprops={"arrowstyle": "->", "shrinkA": 12, "shrinkB": 12})
    for name, (x, y) in place.items():
        axes.text(x, y, name, ha="center", va="center", bbox={"facecolor": "white", "boxstyle": "round"})
    axes.set(xlim=(-3.5, 3.5), ylim=(-0.6, len(rows) - 0.4))
    axes.axis("off")
    figure.savefig(path, metadata={"Date": None})


def _heights(found: dict[str, set[str]]) -> dict[str, int]:
    """The row of each package: one above the highest that it imports."""
    heights: dict[str, int] = {}
    for name in TopologicalSorter(found).static_order():
        heights[name] = 1 + max((heights[each] for each in found[name]), default=-1)
    return heights


def on_pre_build(**_: Any) -> None:
    """Called by mkdocs before it looks for files."""
    reference = Path(__file__).parent / "reference"
    draw(reference / "imports.svg")
    (reference / "columns.md").write_text(dictionary.markdown(), encoding="utf-8")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page before it is rendered: a link to a file beside docs/ becomes its text."""
    out = "../" * (page.file.src_uri.count("/") + 1)
    return re.sub(rf"\[([^\]]+)\]\({re.escape(out)}[^)]+\)", r"\1", markdown)
