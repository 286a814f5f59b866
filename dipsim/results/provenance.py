"""What a result was made from: versions, and the SHA-256 of every file."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from dipsim.basics.files import sha256, write
from dipsim.basics.version import __version__

PACKAGES = ("numpy", "pandas", "pydantic", "safetensors")


def write_origin(
    out: Path, experiment: Mapping[str, Any], files: Mapping[str, Path], packages: Sequence[str] = PACKAGES, **more: Any
) -> None:
    """Write `experiment.yaml`, as it was resolved, and `provenance.json` into a folder of results.

    `files` are named in the provenance by what they are. `more` is added to it.
    """
    write_experiment(out, experiment)
    provenance = {
        "dipsim": __version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "sha256": {name: sha256(path) for name, path in files.items()},
        **more,
    }
    write(out / "provenance.json", json.dumps(provenance, indent=2) + "\n")


def write_experiment(out: Path, experiment: Mapping[str, Any]) -> None:
    """Write `experiment.yaml` into a folder of results."""
    write(out / "experiment.yaml", yaml.safe_dump(dict(experiment), sort_keys=False))
