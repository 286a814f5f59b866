"""Checked fields: the base of every class that is read from a file, and one-line complaints about what does not fit."""

from __future__ import annotations

from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dipsim.basics.errors import InputError, is_plain, one_line, quoted

Count = Annotated[int, Field(strict=True, gt=0, le=10**9)]
Natural = Annotated[int, Field(strict=True, ge=0, le=10**9)]
Fraction = Annotated[float, Field(strict=True, gt=0, le=1)]
Model = TypeVar("Model", bound=BaseModel)

_PLAINER = {  # pydantic's messages that a user would not understand, by their type
    "extra_forbidden": "unknown key; remove it or check its spelling",
    "missing": "is required but missing",
    "too_short": "must not be empty",
    "tuple_type": "must be a list",
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
        complain(error, where)


def complain(error: ValidationError, where: object) -> NoReturn:
    """Raise one InputError for pydantic's report: the first complaint, and how many more there are."""
    details = error.errors(include_url=False)
    first = details[0]
    field = one_line(".".join(str(part) for part in first["loc"]))
    message = one_line(_PLAINER.get(first["type"], first["msg"].removeprefix("Value error, ")))
    if "input" in first and isinstance(first["input"], (str, int, float)) and first["type"] != "value_error":
        message += f" (got {quoted(first['input'])})"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    raise InputError(": ".join(str(part) for part in (where, field, message) if part) + more) from None
