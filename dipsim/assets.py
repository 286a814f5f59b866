"""Where the shipped devices, policies, traces and examples are, and how a name or a path finds its file."""

from __future__ import annotations

from pathlib import Path

from dipsim.files import InputError

_PACKAGE = Path(__file__).resolve().parent
_SUFFIXES = {"devices": (".yaml",), "policies": (".py",), "traces": (".safetensors",), "examples": (".yaml",)}


def directory(kind: str) -> Path:
    """The folder of `kind`: inside the installed package, or beside it in a checkout."""
    inside = _PACKAGE / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def names(kind: str) -> list[str]:
    """Names of the shipped files of `kind`, sorted, as a user types them (`dip-ca`, not `dip_ca.py`)."""
    files = (file for file in directory(kind).iterdir() if file.suffix in _SUFFIXES[kind] and file.stem[0] not in "._")
    return sorted(file.stem.replace("_", "-") if kind == "policies" else file.stem for file in files)


def find(kind: str, name_or_path: str | Path) -> Path:
    """The file that a shipped name or a path of the user's means. Raises InputError if there is none.

    What looks like a path (a separator or one of the known suffixes) is taken as one, everything else as a name.
    """
    text, path = str(name_or_path), Path(name_or_path)
    if path.suffix in _SUFFIXES[kind] or len(path.parts) > 1:
        if not path.is_file():
            raise InputError(f"{text}: no such file (looked in {Path.cwd()})")
        return path
    for suffix in _SUFFIXES[kind]:
        for stem in (text, text.replace("-", "_")):
            if (directory(kind) / f"{stem}{suffix}").is_file():
                return directory(kind) / f"{stem}{suffix}"
    singular = {"policies": "policy"}.get(kind, kind.rstrip("s"))
    raise InputError(f"{text or '(empty)'}: no such {singular}; shipped: {', '.join(names(kind))}; or give a path")
