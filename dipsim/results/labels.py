"""How long names are said in tables and figures."""

from __future__ import annotations

import re
import textwrap

_FOLDERS = re.compile(r"[^\s=(),']*/(?=[^\s=(),'/])")


def short(text: str) -> str:
    """A label with its paths cut to file names: `precision(calibration='q4.safetensors')`."""
    return _FOLDERS.sub("", text)


def wrapped(text: str, width: int = 32) -> str:
    """The same in lines that fit beside a figure."""
    return textwrap.fill(short(text), width, break_on_hyphens=False)
