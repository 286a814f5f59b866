"""Files are read strictly and written whole: every complaint is one line, and no file is left half-written."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from dipsim.basics.errors import InputError, is_plain, one_line, quoted
from dipsim.basics.limits import check_memory

SETTINGS = {"policies": "an experiment", "trace": "an experiment", "flash": "a device", "model": "a recipe"}  # by a key
OTHERS = {".safetensors": "a file of tensors", ".py": "a plugin"}  # by the suffix
LARGEST_YAML = 1_000_000  # bytes
DEEPEST_YAML = 30  # levels of lists and mappings
LARGEST_NUMBER = 10**100  # of a whole one: what has thousands of digits cannot even be written out
MOST_NODES = 100_000  # values, lists and mappings


class _Loader(yaml.SafeLoader):
    """YAML without Python tags, and no larger with its aliases written out. A duplicate key is an error."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = self.size = 0
        self.sizes: dict[int, int] = {}  # of nodes that are whole, by identity

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        outer, self.size = self.size, 1
        self.depth += 1
        is_alias = self.check_event(yaml.AliasEvent)
        if self.depth > DEEPEST_YAML:
            raise yaml.composer.ComposerError(None, None, "is nested too deeply", self._here())
        node = super().compose_node(parent, index)
        if is_alias and id(node) not in self.sizes:
            raise yaml.composer.ComposerError(None, None, "an alias stands for what it is in", self._here())
        self.sizes[id(node)] = size = self.sizes[id(node)] if is_alias else self.size
        self.depth -= 1
        self.size = outer + size
        if self.size > MOST_NODES:
            raise yaml.composer.ComposerError(None, None, "is too much with its aliases written out", self._here())
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if not is_plain(value):
            raise yaml.constructor.ConstructorError(None, None, "has a control character", node.start_mark)
        return value

    def _here(self) -> Any:
        return self.peek_event().start_mark  # type: ignore[no-untyped-call]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {quoted(key)}", key_node.start_mark)
            seen.add(key if isinstance(key, Hashable) else id(key))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(  # 1e-3 and 1.5e3 are numbers, as in YAML 1.2
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    number = int(loader.construct_yaml_int(node))
    if abs(number) > LARGEST_NUMBER:
        raise yaml.constructor.ConstructorError(None, None, "has a number of too many digits", node.start_mark)
    return number


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


def _not_plain(_loader: _Loader, node: yaml.Node) -> None:
    raise yaml.constructor.ConstructorError(None, None, f"has a {node.tag.rpartition(':')[2]}", node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _text)  # a date is a text, as in JSON
for _kind in ("binary", "set", "omap", "pairs"):  # which JSON does not have
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _not_plain)


def check_regular(path: Path, kind: str = "one") -> None:
    """Raise InputError if a path is a folder, or a pipe or a device, which may never end. It may be missing."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # whoever opens it says what is wrong
        return
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is not a file; give {kind}")


def is_file(path: str | Path) -> bool:
    """Whether there is such a file. There is none of a text that cannot be a path."""
    try:
        return Path(path).is_file()
    except OSError:  # it is too long
        return False


def read_text(path: Path) -> str:
    """Read a UTF-8 file. Raises InputError if there is none, or it does not fit into memory."""
    check_regular(path)
    try:
        check_memory(path.stat().st_size, str(path), "give a smaller file")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not a UTF-8 text file") from None


def parse_yaml(text: str, where: object) -> Any:
    """Parse a YAML text. Raises InputError naming `where` for anything but plain YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise InputError(f"{where}: is not plain YAML: {one_line(error.problem)}{line}") from None
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        # PyYAML's constructors raise all of these, for `!!int abc` and its like
        raise InputError(f"{where}: is not plain YAML: {one_line(error)}") from None


def compose(path: Path) -> yaml.Node | None:
    """The nodes of a YAML file, which know their lines; None of a file that cannot be read."""
    try:
        return _Loader(read_text(path)).get_single_node()
    except (InputError, yaml.YAMLError, ValueError, RecursionError):  # which whoever reads it tells
        return None


def line_of(node: yaml.Node | None, text: str) -> int | None:
    """The line of the field that a text begins with, like `flash.page: ` or `dip: keep: `; None if there is none.

    Of what is missing, it is the line of what it is missing from.
    """
    for name, key, value in _entries(node):
        if text.startswith((f"{name}.", f"{name}: ")):
            return line_of(value, text[len(name) + 1 :].lstrip()) or key.start_mark.line + 1
    return None


def _entries(node: yaml.Node | None) -> list[tuple[str, yaml.Node, yaml.Node]]:
    """The name, the key and the value of each entry. An item of a list is known by its index, and by what it holds."""
    if isinstance(node, yaml.MappingNode):
        return [(str(key.value), key, value) for key, value in node.value]
    if not isinstance(node, yaml.SequenceNode):
        return []
    items = [(str(index), item, item) for index, item in enumerate(node.value)]
    named = [(str(item.value), item, item) for item in node.value if isinstance(item, yaml.ScalarNode)]
    mappings = [item for item in node.value if isinstance(item, yaml.MappingNode)]
    return [*items, *named, *(entry for item in mappings for entry in _entries(item))]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file. Raises InputError for anything that is not one plain mapping."""
    check_regular(path, "a YAML file")
    if path.exists() and path.stat().st_size > LARGEST_YAML:
        raise InputError(f"{path}: is larger than {LARGEST_YAML / 1e6:g} MB; no file of settings is, give another one")
    data = parse_yaml(read_text(path), path)
    if not isinstance(data, dict):
        kind = "empty" if data is None else f"a {type(data).__name__}"
        raise InputError(f"{path}: is {kind}; a mapping of `key: value` lines is expected")
    return data


def kind_of(data: Mapping[str, Any]) -> str | None:
    """Which settings these are, by a key that no others have; None where nothing tells."""
    return next((kind for key, kind in SETTINGS.items() if key in data), None)


def read_settings(path: Path, kind: str) -> dict[str, Any]:
    """Read a YAML file of one kind of settings. Raises InputError for anything that is not one plain mapping, and for
    a file that is of another kind, which is named.
    """
    data: dict[str, Any] = {} if (found := OTHERS.get(path.suffix)) and path.is_file() else read_yaml(path)
    if (found := found or kind_of(data)) not in (kind, None):
        raise InputError(f"{path}: is {found}, not {kind}; give the path of {kind}")
    return data


def write(path: Path, content: str | Callable[[Path], object]) -> None:
    """Write a file whole or not at all.

    `content` is the text, or a function that writes a file at the path it is given. That file is a temporary one
    beside `path`; it takes the place of `path` once it is complete. Raises InputError if it cannot.
    """
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{os.urandom(4).hex()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # an ordinary file's, which `content` may make a private one
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            content(temporary)
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):  # what could not be written may not be there
            temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files that processes which are no more left in a folder."""
    for file in folder.glob(".*-*-*"):
        named = re.fullmatch(r"\..*-(\d+)-[0-9a-f]{8}", file.stem)
        if named and _gone(int(named[1])):
            file.unlink(missing_ok=True)


def _gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's, or no such number
        return False
    return False


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
