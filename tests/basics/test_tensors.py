"""The tensors of what was learned: read whole, or refused in one short line."""

import json

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from dipsim.basics.errors import InputError
from dipsim.basics.fields import Strict
from dipsim.basics.tensors import read_learned, read_tensors


class Source(Strict):
    text: str


def test_tensors_of_all_numbers_are_read(tmp_path):
    path = tmp_path / "t.safetensors"
    kinds = (np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64, np.bool_)
    tensors = {np.dtype(kind).name: np.array([0, 1], dtype=kind) for kind in kinds}
    save_file(tensors, path, {"origin": '{"text": "a"}'})
    origin, found = read_learned(path, Source, "make it again")
    assert origin == Source(text="a")
    assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in found.items()} == {
        name: (tensor.dtype, [0, 1]) for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.1e15, -1e30])
def test_impossible_numbers(tmp_path, value):
    path = tmp_path / "t.safetensors"
    save_file({"fine": np.array([1e15], np.float32), "wrong": np.array([1, value], np.float32)}, path)
    with pytest.raises(InputError) as error:
        read_tensors(path, "make it again")
    assert str(error.value) == f"{path}: wrong: holds NaN, or numbers that are not within 1e+15 of 0; make it again"


@pytest.mark.parametrize(
    ("origin", "complaint"),
    [
        ("{", "origin: is not JSON"),
        ("[" * 100_000, "origin: is not JSON"),
        ("[]", "must be"),
        ("{}", "text: is req"),
    ],
)
def test_an_origin_that_is_none(tmp_path, origin, complaint):
    path = tmp_path / "t.safetensors"
    save_file({"a": np.zeros(1)}, path, {"origin": origin})
    with pytest.raises(InputError) as error:
        read_learned(path, Source, "make it again")
    assert str(error.value).startswith(f"{path}: ")
    assert complaint in str(error.value)
    assert str(error.value).endswith("; make it again")


@pytest.mark.parametrize("dtype", ["U8\nU8", "F" * 9000, "BF16", "F8_E4M3"])
def test_what_the_library_says_is_one_short_line(tmp_path, dtype):
    path = tmp_path / "t.safetensors"
    data = save({"a": np.zeros(2, np.float16)})
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["a"]["dtype"] = dtype
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + data[8 + size :])
    with pytest.raises(InputError) as error:
        read_tensors(path, "make it again")
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith("; make it again")
    assert "\n" not in message
    assert len(message) < 600
