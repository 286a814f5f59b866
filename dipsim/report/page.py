"""Puts the page together: what a folder shows, its figures, where it comes from, and what every name means.

The page runs its own script and no other, loads nothing, and is the same for the same folder.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from string import Template

from pydantic_core import from_json

from dipsim.basics.errors import InputError
from dipsim.basics.files import check_regular, read_text, write
from dipsim.report import parts, run, table
from dipsim.report.parts import Cell, Section
from dipsim.results.dictionary import DICTIONARY, flatten
from dipsim.results.folder import command_of

LARGEST = 5_000_000  # bytes of a page


def write_report(folder: Path, out: Path) -> None:
    """Write the page of an output folder. Raises InputError, and writes nothing, if it is none."""
    write(out, render(folder))


def render(folder: Path) -> str:
    """The page of an output folder. Raises InputError if it is none."""
    command = command_of(folder)
    page = run.page(folder) if command == "run" else table.page(folder, command)
    origin = [] if command == "compare" else _origin(folder)  # what is compared has its own
    sections = [*page.sections, *origin, Section("dictionary", "What the columns mean", _dictionary(folder))]
    text = {
        name: Path(__file__).with_name(f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js", "html")
    }
    blank = _fill(text, page, sections)
    figures = _figures(folder, LARGEST - len(blank.encode()) - 1000)
    if figures:
        sections.insert(len(page.sections), Section("figures", "Figures", figures))
    return _fill(text, page, sections)


def _fill(text: dict[str, str], page: parts.Page, sections: list[Section]) -> str:
    links = "".join(f'<li><a href="#{each.name}">{parts.escape(each.title)}</a></li>' for each in sections)
    return Template(text["html"]).substitute(
        title=parts.escape(page.title),
        setting=parts.escape(page.setting),
        links=links,
        sections="".join(map(str, sections)),
        data=parts.data(page.data),
        style=text["css"],
        script=text["js"],
        style_hash=_digest(text["css"]),
        script_hash=_digest(text["js"]),
    )


def _digest(text: str) -> str:
    """What the page's policy knows its own style and script by."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _figures(folder: Path, room: int) -> str:
    """The folder's figures, as SVG or, if there is no room for it, as PNG, or by their names."""
    shown = ""
    for path in sorted(folder.glob("*.svg")):
        if not (twin := path.with_suffix(".png")).is_file():  # a figure is there in two formats
            continue
        for file in (path, twin):
            check_regular(file)
            if not _is_picture(file):
                continue
            if file.stat().st_size * 4 / 3 + 1000 < room - len(shown):
                shown += parts.picture(file)
                break
        else:
            shown += parts.paragraph(f"{path.name} is damaged, or too large for this page.")
    return shown


def _is_picture(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(5).startswith((b"<?xml", b"<svg", b"\x89PNG"))


def _origin(folder: Path) -> list[Section]:
    """The experiment as it was resolved, and where everything came from, as far as the folder has them."""
    found = []
    if (path := folder / "experiment.yaml").is_file():
        found.append(Section("experiment", "Experiment", parts.code(read_text(path))))
    if (path := folder / "provenance.json").is_file():
        try:
            origin = flatten(from_json(read_text(path)))
        except ValueError:
            raise InputError(f"{path}: is not JSON; run the experiment again") from None
        rows = [[Cell(name), Cell(str(value))] for name, value in origin.items()]
        found.append(
            Section("provenance", "Provenance", parts.table([("what", ""), ("which", "")], rows, "Provenance"))
        )
    return found


def _dictionary(folder: Path) -> str:
    """What the names in the folder's files mean."""
    heads = [("name", ""), ("unit", ""), ("meaning", ""), ("formula", "")]
    return "".join(
        parts.details(file, parts.table(heads, [[Cell(text) for text in entry] for entry in entries], file))
        for file, entries in DICTIONARY.items()
        if (folder / file).is_file()
    )
