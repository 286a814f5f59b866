"""How long names are said in tables and figures."""

from __future__ import annotations

import re

_FOLDERS = re.compile(r"[^\s=(),']*/(?=[^\s=(),'/])")


def short(text: str) -> str:
    """A label with its paths cut to file names: `precision(calibration='q4.safetensors')`."""
    return _FOLDERS.sub("", text)
