"""Eviction rules, one a file. A file that defines an `EvictionRule` is found by itself; nothing else lists it."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from dipsim.basics.errors import InputError, did_you_mean, quoted
from dipsim.memory.eviction.rule import RULES, EvictionRule

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def eviction_rule(name: str) -> type[EvictionRule]:
    """The rule of that name. Raises InputError if there is none."""
    try:
        return RULES[name]
    except (KeyError, TypeError):
        raise InputError(f"eviction: {_unknown(name)}") from None


def _check(name: str) -> str:
    if name not in RULES:
        raise ValueError(_unknown(name))
    return name


def _unknown(name: object) -> str:
    return f"{quoted(name)} is not one of {', '.join(RULES)}{did_you_mean(name, RULES)}"


# A field of an experiment: the name of a rule.
Eviction = Annotated[str, AfterValidator(_check), WithJsonSchema({"type": "string", "enum": list(RULES)})]
