"""Reading files strictly and writing them whole: every complaint is one line, no file is left half-written."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: where, what, and the remedy."""


class Strict(BaseModel):
    """Base of everything read from a file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Count = Annotated[int, Field(strict=True, gt=0, le=10**9)]
Natural = Annotated[int, Field(strict=True, ge=0, le=10**9)]
Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML without python tags and without silently dropped duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key if isinstance(key, Hashable) else id(key))
        return super().construct_mapping(node, deep)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises InputError if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not a UTF-8 text file") from None


def parse_yaml(text: str, where: object) -> Any:
    """The value of a YAML text. Raises InputError naming `where` for anything but plain YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise InputError(f"{where}: is not plain YAML: {error.problem}{line}") from None
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        # a date like 2001-99-99, `!!int abc`: the constructors raise what they like
        raise InputError(f"{where}: is not plain YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises InputError for anything that is not one plain mapping."""
    data = parse_yaml(read_text(path), path)
    if not isinstance(data, dict):
        kind = "empty" if data is None else f"a {type(data).__name__}"
        raise InputError(f"{path}: is {kind}; a mapping of `key: value` lines is expected")
    return data


def parse(model: type[Model], data: Any, where: object) -> Model:
    """`data` as a `model`. Raises InputError naming `where`, the field and what is wrong with it."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        complain(error, where)


def complain(error: ValidationError, where: object) -> NoReturn:
    """Turn pydantic's report into one InputError: the first complaint, and how many more there are."""
    details = error.errors(include_url=False)
    first = details[0]
    field = ".".join(str(part) for part in first["loc"])
    message = {
        "extra_forbidden": "unknown key; remove it or check its spelling",
        "missing": "is required but missing",
        "too_short": "must not be empty",
        "tuple_type": "must be a list",
    }.get(first["type"], first["msg"].removeprefix("Value error, "))
    if "input" in first and isinstance(first["input"], (str, int, float)) and first["type"] != "value_error":
        message += f" (got {first['input']!r})"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    raise InputError(": ".join(str(part) for part in (where, field, message) if part) + more) from None


def write(path: Path, content: str | Callable[[Path], object]) -> None:
    """Write text, or what `content` writes to the path it is given, whole or not at all.

    It goes to a temporary file beside `path` that takes its place in the end. Raises InputError if it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    temporary = Path(name)
    try:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            content(temporary)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes private files; a result is an ordinary one
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
