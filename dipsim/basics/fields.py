"""Checked fields: the base of every class that is read from a file, and one-line complaints about what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dipsim.basics.errors import InputError, did_you_mean, is_plain, one_line, quoted

Count = Annotated[int, Field(strict=True, gt=0, le=10**9)]
Natural = Annotated[int, Field(strict=True, ge=0, le=10**9)]
Fraction = Annotated[float, Field(strict=True, gt=0, le=1)]
Model = TypeVar("Model", bound=BaseModel)
MOST_GUESSES = 100  # at what a misspelt key was meant to be
Place = Sequence[int | str]  # of a value: the keys and indices that lead to it

_PLAINER = {  # pydantic's messages that a user would not understand, by their type
    "missing": "is required but missing",
    "too_long": "has too many values",
    "too_short": "must not be empty",
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "model_type"), "must be a mapping, like {key: value}"),
}


class Strict(BaseModel):
    """Base of everything read from a file. Instances are immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if isinstance(value, str) and not is_plain(value):
            raise ValueError("has a control character; leave it out")
        return value


def parse(model: type[Model], data: Any, where: object) -> Model:
    """Check `data` and make a `model` of it. Raises InputError naming `where`, the field and what is wrong with it."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        complain(error, where, model, data)


def complain(error: ValidationError, where: object, model: object = None, data: Any = None) -> NoReturn:
    """Raise one InputError for pydantic's report about the `data` of a `model`: a complaint a field.

    Keys that are likely misspelt come first: what they were meant to be may be missing for that reason alone.
    """
    found: dict[str, str] = {}
    guesses: dict[str, str] = {}
    for index, each in enumerate(error.errors(include_url=False)):
        kind = each["type"]
        place = each["loc"] if data is None else _written(data, each["loc"], missing=kind == "missing")
        field = one_line(".".join(map(str, place)))
        if kind == "extra_forbidden":
            meant = did_you_mean(place[-1], _keys(model, place[:-1])) if index < MOST_GUESSES else ""
            (guesses if meant else found)[field] = f"unknown key{meant or '; remove it or check its spelling'}"
            continue
        message = each["msg"].removeprefix("Value error, ").replace("Input should", "must")
        message = one_line(_PLAINER.get(kind, message))
        if isinstance(each["input"], (str, int, float)) and kind != "value_error":
            message += f" (got {quoted(each['input'])})"
        found.setdefault(field, message)
    lines = (guesses | found).items()
    raise InputError(*(": ".join(str(part) for part in (where, *line) if part) for line in lines)) from None


def _written(data: Any, place: Place, missing: bool) -> Place:
    """A place as the data has it: without what pydantic adds to it, such as the members of a union."""
    found: list[int | str] = []
    for index, part in enumerate(place):
        keyed = isinstance(data, dict) and part in data
        if keyed or (isinstance(data, (list, tuple)) and isinstance(part, int) and part < len(data)):
            data = data[part]
        elif not (missing and index == len(place) - 1):
            continue
        found.append(part)
    return found


def _keys(kind: Any, place: Place) -> list[str]:
    """The keys that a mapping may have at a place of a model, or of any other type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if not place:
            return list(kind.model_fields)
        field = kind.model_fields.get(str(place[0]))
        return [] if field is None else _keys(field.annotation, place[1:])
    rest = place[1:] if get_origin(kind) in (dict, list, tuple) else place
    return [key for inner in get_args(kind) for key in _keys(inner, rest)]
