"""Ways to damage an input, each drawn from a random generator: bytes, trees (YAML, JSON), rows (CSV), safetensors."""

import copy
import csv
import io
import json
import math
import random
from collections.abc import Iterator
from typing import Any

import yaml

HUGE = 10**400
DEEP: Any = []
for _ in range(60):
    DEEP = [DEEP]
ONLY_YAML = {
    "HEXADECIMAL": "0x" + "f" * 9000,
    "DATE": "2001-01-01",
    "BINARY": "!!binary aGk=",
    "SET": "!!set {a, b}",
    "KEYS": "{? [1, 2] : 3, ? {a: b} : 4}",
}
NASTY: list[Any] = [
    *ONLY_YAML,
    *(None, True, False, -1, 0, 1, 2, 3, 0.5, -0.0, 1e-300, 1e300, 1e999, -1e999, math.nan, 10**6, 10**9, 2**31),
    *(2**63, 2**64 - 1, HUGE, -HUGE, "", " ", "x" * 5000, "\x00", "\x1b[31m", "\u2028", "é", "0", "-1", "1e400"),
    *("1e999 GB", "-1 GB", "0 B", "nan GB", "1 B", "3 s", "{mlp_fraction: 0.5}", "/", ".", "/dev/zero", "a/" * 3000),
    *("dense", "dip", "lru", "warm", "pinned", "columns", "pipelined", "{", "[]", "2001-99-99", "!!int abc"),
    *([], {}, [None], [[]], {"a": 1}, {"": None}, [1, 2], [2, 1], ["1 GB"], [-1], [HUGE], [0] * 300, DEEP),
]
TOKENS = (
    *(b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"\x00", b"\xff", b"\xc3", b"\r", b"\n", b"\t", b"'"),
    *(b'"', b"{", b"}", b"[", b"]", b",", b": ", b"- ", b"#", b"1e999", b"nan", b"inf", b"-1", b"9" * 400, b"NaN"),
    *(b"[" * 5000, b"{'a':" * 500, b"0x" + b"f" * 9000, b"9" * 5000, b"\\ud800", b"1_000"),
    *(b"\xef\xbb\xbf", b"\xe2\x80\xae"),
)  # fmt: skip


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, moved, or something put between."""
    place, other = (rng.randrange(len(data) + 1) for _ in range(2))
    begin, end = sorted((place, other))
    lines = data.split(b"\n")
    line = rng.randrange(len(lines))
    match rng.randrange(9):
        case 0:
            return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
        case 1:
            return data[:place]
        case 2:
            return data[:begin] + data[end:]
        case 3:
            return data[:end] + data[begin:]
        case 4:
            return b"\n".join(lines[:line] + lines[line + 1 :])
        case 5:
            return b"\n".join([*lines[: line + 1], *lines[line:]])
        case 6:
            moved = lines.pop(line)
            lines.insert(rng.randrange(len(lines) + 1), moved)
            return b"\n".join(lines)
        case _:
            return data[:place] + rng.choice(TOKENS) + data[place:]


def damage_tree(tree: Any, rng: random.Random) -> Any:
    """A copy with values replaced, renamed, removed, swapped or doubled."""
    tree = [copy.deepcopy(tree)]  # so that the root has a place, too
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        holder, key = rng.choice(places)
        value = holder[key]
        match rng.randrange(10):
            case 0 if holder is not tree:
                del holder[key]
            case 1 if isinstance(holder, dict):
                del holder[key]
                holder[rng.choice((*[str(k) for _, k in places if isinstance(k, str)], "", 1, "x" * 300))] = value
            case 2:
                there, where = rng.choice(places)
                other = copy.deepcopy(there[where])
                there[where] = copy.deepcopy(value)
                holder[key] = other
            case 3 if isinstance(holder, list) and holder is not tree:
                holder.extend([copy.deepcopy(value)] * rng.choice((1, 2, 50)))
            case 4:
                holder[key] = [value]
            case 5 if isinstance(value, int | float) and not isinstance(value, bool):
                holder[key] = _scaled(value, rng)
            case 6 if isinstance(value, str) and value:
                holder[key] = damage_bytes(value.encode(), rng).decode(errors="ignore")
            case _:
                holder[key] = copy.deepcopy(rng.choice(NASTY))
    return tree[0]


def _scaled(value: float, rng: random.Random) -> float:
    changes = (
        lambda v: -v,
        lambda v: v + 1,
        lambda v: v - 1,
        lambda v: v * 1000,
        lambda v: v // 2,
        lambda v: v * 10**30,
    )
    return rng.choice(changes)(value)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) in a tree, so that holder[key] is a value."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


def yaml_bytes(tree: Any) -> bytes:
    """A tree as YAML, with values that no tree has in place of some texts."""
    written = yaml.dump(tree, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True, width=10_000)
    for text, value in ONLY_YAML.items():
        written = written.replace(text, value)
    return written.encode()


def json_bytes(tree: Any) -> bytes:
    """A tree as JSON, with what Python adds: NaN, Infinity."""
    return json.dumps(tree).encode()


def damage_rows(table: bytes, rng: random.Random) -> bytes:
    """A CSV table with columns renamed, removed or doubled, rows removed, doubled or moved, values replaced."""
    rows = list(csv.reader(io.StringIO(table.decode())))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        row, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
        match rng.randrange(8):
            case 0:
                rows[0][column] = rng.choice(("", "x", "a.b", "policy", "token", "extra_s", "streams", rows[0][-1]))
            case 1:
                rows = [each[:column] + each[column + 1 :] for each in rows]
            case 2:
                rows = [[*each, *each[column : column + 1]] for each in rows]
            case 3:
                del rows[row]
            case 4:
                rows.insert(rng.randrange(1, len(rows) + 1), list(rows[row]))
            case 5:
                rows.insert(rng.randrange(1, len(rows)), rows.pop(row)) if len(rows) > 1 else None
            case _:
                for each in rows[1:] if rng.random() < 0.2 else [rows[row]]:
                    if column < len(each):
                        each[column] = rng.choice(
                            (str(rng.choice(NASTY))[:6000], "nan", "inf", "1e300", "1e-300", "-1")
                        )
        if not rows or not rows[0]:
            break
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue().encode(errors="replace")


def damage_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header (dtypes, shapes, offsets, metadata), or other numbers."""
    size = int.from_bytes(data[:8], "little")
    header, payload = json.loads(data[8 : 8 + size]), data[8 + size :]
    match rng.randrange(8):
        case 0:
            return damage_bytes(data, rng)
        case 1:
            return rng.choice((0, 1, size - 1, size + 8, 2**40, 2**64 - 1)).to_bytes(8, "little") + data[8:]
        case 2:
            return data[: 8 + size] + _other_numbers(payload, rng)
        case 3 | 4:
            metadata = header.get("__metadata__", {})
            name = rng.choice(sorted(metadata)) if metadata else ""
            header["__metadata__"] = metadata | {name: _damage_text(metadata.get(name, ""), rng)}
        case 5:
            name = rng.choice([key for key in header if key != "__metadata__"])
            header[name]["dtype"] = rng.choice(
                ("F16", "F32", "F64", "BF16", "I8", "U8", "I16", "I64", "BOOL", "F8_E4M3")
            )
        case 6:
            name, other = (rng.choice([key for key in header if key != "__metadata__"]) for _ in range(2))
            header[name], header[other] = header[other], header[name]
        case _:
            header = damage_tree(header, rng)
    try:
        written = json.dumps(header, allow_nan=False).encode()
    except ValueError:
        written = b"{}"
    return len(written).to_bytes(8, "little") + written + payload


def _damage_text(text: str, rng: random.Random) -> str:
    """The text of a metadatum, which may be JSON."""
    try:
        return json.dumps(damage_tree(json.loads(text), rng))
    except ValueError:
        return str(rng.choice(NASTY))


def _other_numbers(payload: bytes, rng: random.Random) -> bytes:
    place, fill = (
        rng.randrange(len(payload) + 1),
        rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80", b"\x00\x7c", b"\x00\x00\x80\x7f")),
    )
    return (payload[:place] + fill * rng.choice((1, 1, 8, 4000)) + payload[place:])[: len(payload)]
