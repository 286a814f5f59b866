"""The shipped layouts, one a file. A file that defines a `Layout` is found by itself; nothing else lists it."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from dipsim.basics import assets
from dipsim.basics.errors import InputError, did_you_mean, quoted
from dipsim.storage.layout import LAYOUTS, Layout
from dipsim.storage.learned import SUFFIX, Learned, learned_file

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def load_layout(name_or_path: str) -> Layout:
    """A shipped layout by name, or one that was learned by the path of its file.

    Raises InputError if there is none, or the file is no layout.
    """
    if name_or_path in LAYOUTS:
        return LAYOUTS[name_or_path]()
    if (file := learned_file(name_or_path)) is not None:
        return Learned.read(file)
    known = (*sorted(LAYOUTS), *assets.names("layouts"))
    raise InputError(
        f"layout: {quoted(name_or_path)} is not one of {', '.join(known)}, nor the path of a learned one, "
        f"*{SUFFIX}{did_you_mean(name_or_path, known)}"
    )
