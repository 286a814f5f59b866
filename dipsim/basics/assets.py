"""Finds the shipped devices, policies, traces and examples by name, and the user's own by path."""

from __future__ import annotations

import os
from pathlib import Path

from dipsim.basics.errors import InputError, did_you_mean, one_line
from dipsim.basics.files import check_regular

_PACKAGE = Path(__file__).resolve().parent.parent
_SUFFIXES = {
    "devices": (".yaml", ".yml"),
    "policies": (".py",),
    "prefetchers": (".py",),
    "traces": (".safetensors", ".yaml"),
    "sensitivities": (".safetensors",),
    "layouts": (".safetensors",),
    "examples": (".yaml",),
}
_LEARNED = {"sensitivities": ".sensitivity", "layouts": ".layout"}  # before the suffix of what was learned of a model


def directory(kind: str) -> Path:
    """The folder of `kind`. It is inside the installed package, or beside the package in a checkout."""
    kind = "traces" if kind in _LEARNED else kind  # it lies beside the trace of its model
    if kind == "prefetchers":
        return directory("policies") / kind
    inside = _PACKAGE / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def names(kind: str) -> list[str]:
    """Names of the shipped files of `kind`, sorted, as a user types them: `dip-ca`, not `dip_ca.py`."""
    return sorted(_name(kind, file) for file in _files(kind))


def _files(kind: str) -> list[Path]:
    files = (file for file in directory(kind).iterdir() if file.suffix in _SUFFIXES[kind])
    shown = (file for file in files if file.stem[0] not in "._")
    return sorted(file for file in shown if _second_suffix(file) == _LEARNED.get(kind, ""))


def _second_suffix(file: Path) -> str:
    """`.sensitivity` or `.layout` of files that hold what was learned of a model; nothing of any other."""
    return next((suffix for suffix in _LEARNED.values() if file.stem.endswith(suffix)), "")


def _name(kind: str, file: Path) -> str:
    return file.stem.replace("_", "-") if ".py" in _SUFFIXES[kind] else file.stem.removesuffix(_LEARNED.get(kind, ""))


def is_path(kind: str | None, text: str | Path) -> bool:
    """Whether a text is a path and not a name: it has a separator, or a suffix of its kind; any, where that is None."""
    suffix, separated = Path(text).suffix, not {"/", os.sep}.isdisjoint(str(text))
    return separated or (suffix != "" if kind is None else suffix in _SUFFIXES[kind])


def find(kind: str, name_or_path: str | Path) -> Path:
    """Find the file of a shipped name or of a user's path. Raises InputError if there is none."""
    text, path = str(name_or_path), Path(name_or_path)
    if is_path(kind, text):
        try:
            path.stat()
        except (OSError, ValueError) as error:
            why = (
                "no such file" if isinstance(error, FileNotFoundError) else one_line(getattr(error, "strerror", error))
            )
            raise InputError(f"{one_line(text)}: {why} (looked in {Path.cwd()})") from None
        if path.is_dir():
            raise InputError(f"{text}: is a folder; give a file")
        check_regular(path)
        return path
    for file in _files(kind):
        if text in (file.stem, _name(kind, file)):
            return file
    singular = {"policies": "policy", "sensitivities": "sensitivity"}.get(kind, kind.rstrip("s"))
    shipped = names(kind)
    raise InputError(
        f"{one_line(text) or '(empty)'}: no such {singular}{did_you_mean(text, shipped)}; "
        f"shipped: {', '.join(shipped)}; or give a path"
    )


def policy_name(name_or_path: str) -> str:
    """The name of a policy: `mine` for ./mine.py, `dip-ca` for dip_ca and dip-ca."""
    return Path(name_or_path).name.removesuffix(".py").replace("_", "-")


def same_policy(name: str, policy: str) -> bool:
    """Tell whether `name` stands for the policy that an experiment writes as `policy`: by name or by path."""
    return name == policy_name(policy) or Path(name) == Path(policy)
