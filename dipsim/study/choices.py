"""How an experiment file names a plugin and its parameters."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from dipsim.basics.fields import Strict
from dipsim.sparsity.plugins import load_policy, load_prefetcher
from dipsim.sparsity.policy import Policy
from dipsim.sparsity.prefetcher import Prefetcher


class PolicyChoice(Strict):
    """A policy by name or path, and its parameters. A file says `dense` or `{dip: {keep: 0.5}}`."""

    policy: str
    parameters: dict[str, Any] = Field(default_factory=dict)

    def load(self) -> Policy:
        """Load the policy. Raises InputError if it cannot be used."""
        return load_policy(self.policy, **self.parameters)


class PrefetcherChoice(Strict):
    """A prefetcher by name or path, and its parameters. A file says `popular` or `{oracle: {recall: 0.5}}`."""

    policy: str
    parameters: dict[str, Any] = Field(default_factory=dict)

    def load(self) -> Prefetcher:
        """Load the prefetcher. Raises InputError if it cannot be used."""
        return load_prefetcher(self.policy, **self.parameters)


def _read_choice(value: Any) -> Any:
    if isinstance(value, str):
        return {"policy": value}
    if isinstance(value, dict) and len(value) == 1:
        ((name, parameters),) = value.items()
        if isinstance(parameters, dict) and all(isinstance(key, str) for key in parameters):
            return {"policy": name, "parameters": parameters}
    raise ValueError(f"{value!r} is not a policy or prefetcher; write `dip` or `{{dip: {{keep: 0.5}}}}`")


def _write_choice(choice: PolicyChoice | PrefetcherChoice) -> Any:
    return {choice.policy: choice.parameters} if choice.parameters else choice.policy


_CHOICE_SCHEMA: Any = {
    "oneOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "object"}, "maxProperties": 1}],
    "examples": ["dense", {"dip": {"keep": 0.5}}],
}
Choice = Annotated[
    PolicyChoice, BeforeValidator(_read_choice), PlainSerializer(_write_choice), WithJsonSchema(_CHOICE_SCHEMA)
]
PrefetcherBy = Annotated[
    PrefetcherChoice, BeforeValidator(_read_choice), PlainSerializer(_write_choice), WithJsonSchema(_CHOICE_SCHEMA)
]
