"""How an experiment file names a plugin and its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from dipsim.basics.assets import policy_name
from dipsim.basics.errors import InputError, named, quoted
from dipsim.basics.fields import Strict
from dipsim.sparsity.plugins import made, policy_class, prefetcher_class
from dipsim.sparsity.policy import Policy
from dipsim.sparsity.prefetcher import Prefetcher

EXAMPLES = {"policy": "`dip` or `{dip: {keep: 0.5}}`", "prefetcher": "`popular` or `{oracle: {recall: 0.5}}`"}


class PolicyChoice(Strict):
    """A policy by name or path, and its parameters. A file says `dense` or `{dip: {keep: 0.5}}`."""

    policy: str
    parameters: dict[str, Any] = Field(default_factory=dict)

    def load(self) -> Policy:
        """Load the policy. Raises InputError if it cannot be used."""
        with named("policies"):
            found = policy_class(self.policy)
        return made(found, self.parameters, f"policy {policy_name(self.policy)}")


class PrefetcherChoice(Strict):
    """A prefetcher by name or path, and its parameters. A file says `popular` or `{oracle: {recall: 0.5}}`."""

    prefetcher: str
    parameters: dict[str, Any] = Field(default_factory=dict)

    def load(self) -> Prefetcher:
        """Load the prefetcher. Raises InputError if it cannot be used."""
        with named("prefetch.by"):
            return made(prefetcher_class(self.prefetcher), self.parameters, policy_name(self.prefetcher))


def _read_choice(value: Any, kind: str) -> Any:
    """The fields of the choice of a plugin that is a policy or a prefetcher."""
    if isinstance(value, str):
        return {kind: value}
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, parameters),) = value.items()
        if isinstance(parameters, Mapping) and all(isinstance(key, str) for key in (name, *parameters)):
            return {kind: name, "parameters": parameters}
    raise InputError(f"{quoted(value)} is not a {kind}; write {EXAMPLES[kind]}")


def load_choice(policy: str | Path | Mapping[str, Mapping[str, Any]]) -> Policy:
    """Load a policy by name, by path, or as a file writes it: {"dip": {"keep": 0.5}}. Raises InputError."""
    value = str(policy) if isinstance(policy, Path) else policy
    return PolicyChoice(**_read_choice(value, "policy")).load()


def _write_choice(choice: PolicyChoice | PrefetcherChoice) -> Any:
    name = choice.policy if isinstance(choice, PolicyChoice) else choice.prefetcher
    return {name: choice.parameters} if choice.parameters else name


_CHOICE_SCHEMA: Any = {
    "oneOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "object"}, "maxProperties": 1}],
    "examples": ["dense", {"dip": {"keep": 0.5}}],
}


def _field(kind: str) -> tuple[BeforeValidator, PlainSerializer, WithJsonSchema]:
    read = partial(_read_choice, kind=kind)
    return BeforeValidator(read), PlainSerializer(_write_choice), WithJsonSchema(_CHOICE_SCHEMA)


Choice = Annotated[PolicyChoice, *_field("policy")]
PrefetcherBy = Annotated[PrefetcherChoice, *_field("prefetcher")]
