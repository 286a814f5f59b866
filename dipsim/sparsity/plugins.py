"""Finds and loads plugins: a Python file with one subclass of `Policy` or `Prefetcher`, shipped or a user's own."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from dipsim.basics import assets
from dipsim.basics.errors import InputError, one_line, quoted
from dipsim.basics.fields import parse
from dipsim.sparsity.policy import OWN, SHIPPED, Policy
from dipsim.sparsity.prefetcher import Prefetcher

Plugin = TypeVar("Plugin", bound=Policy | Prefetcher)


def load_policy(name_or_path: str | Path, /, **parameters: Any) -> Policy:
    """Load a shipped policy by name, or a plugin by path, with its parameters.

    Raises InputError for an unknown policy, for a file that cannot be imported or does not hold exactly one Policy,
    and for parameters that the policy does not have or that are out of range.
    """
    cls = policy_class(name_or_path)
    return made(cls, parameters, f"policy {assets.policy_name(str(name_or_path))}")


def policy_class(name_or_path: str | Path) -> type[Policy]:
    """Load the class of a shipped policy by name, or of a plugin by path. Raises InputError as `load_policy`."""
    return _plugin_class("policies", name_or_path, Policy)


def load_prefetcher(name_or_path: str | Path, /, **parameters: Any) -> Prefetcher:
    """Load a shipped prefetcher by name, or a plugin by path, with its parameters.

    Raises InputError as `load_policy`.
    """
    return made(prefetcher_class(name_or_path), parameters, f"prefetch: {assets.policy_name(str(name_or_path))}")


def prefetcher_class(name_or_path: str | Path) -> type[Prefetcher]:
    """Load the class of a prefetcher, by name or path. Raises InputError as `load_policy`."""
    return _plugin_class("prefetchers", name_or_path, Prefetcher)


def plugin_class(path: Path) -> type[Policy] | type[Prefetcher]:
    """Load the class that a user's file holds. Raises InputError as `load_policy`."""
    return _plugin_class("policies", path, Policy, Prefetcher)


def made(cls: type[Plugin], parameters: dict[str, Any], where: object) -> Plugin:
    """A plugin with its parameters. Raises InputError, beginning with `where`, for those it refuses in any way."""
    try:
        return parse(cls, parameters, where)
    except (InputError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{name}={quoted(value)}" for name, value in parameters.items())
        raise InputError(
            f"{where}: cannot be made with {given or 'no parameters'} ({type(error).__name__}: {one_line(error)})"
        ) from error


def _plugin_class(kind: str, name_or_path: str | Path, *bases: type[Plugin]) -> type[Plugin]:
    """The only subclass of one of the bases in a plugin's file."""
    path = assets.find(kind, name_or_path)
    module = _import(kind, path)
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, bases) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = ", ".join(sorted(cls.__name__ for cls in found)) or "none"
        wanted = " or ".join(f"dipsim.{base.__name__}" for base in bases)
        raise InputError(f"{path}: must define exactly one subclass of {wanted} (found {names})")
    return found[0]


def _import(kind: str, path: Path) -> ModuleType:
    """Import a plugin file. Shipped ones are `dipsim.policies.NAME`, so that plugins can build on them."""
    try:
        if path.resolve().parent == assets.directory(kind):
            package = SHIPPED if kind == "policies" else f"{SHIPPED}.{kind}"
            return importlib.import_module(f"{package}.{path.stem}")
        return _run(path)
    except (Exception, SystemExit) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        text = one_line(error)
        raise InputError(f"{path}: cannot be imported: {type(error).__name__}: {text}{line}") from error


def sources(path: Path) -> list[Path]:
    """A plugin's file, and those beside it that it imports by name, directly or not; sorted. Nothing is run."""
    found: set[Path] = set()
    left = [path.resolve()]
    while left:
        file = left.pop()
        if file not in found:
            found.add(file)
            left += [beside for name in _imported(file) if (beside := _beside(path.resolve().parent, name)) is not None]
    return sorted(found)


def _imported(file: Path) -> set[str]:
    """The first names of the modules that a file imports; none if it is not Python."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (OSError, SyntaxError, ValueError):  # which running it will tell
        return set()
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names += [node.module] if node.module else [alias.name for alias in node.names]
    return {name.partition(".")[0] for name in names}


def _beside(folder: Path, name: str) -> Path | None:
    """The file of a module in a folder."""
    files = (folder / f"{name}.py", folder / name / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _run(path: Path) -> ModuleType:
    """Run a user's file as a module, anew each time, since it and what it imports from its folder may have changed."""
    helpers = {str(file) for file in sources(path)} - {str(path.resolve())}
    for known, loaded in list(sys.modules.items()):
        if getattr(loaded, "__file__", None) in helpers:
            del sys.modules[known]
    name = f"{OWN}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pydantic look a class's module up there
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module
