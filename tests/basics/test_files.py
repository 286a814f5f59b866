import os

import pytest

from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.basics.files import compose, line_of, read_yaml, write
from dipsim.timing.device import Device

BOMB = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 20)}]\n" for n in range(1, 9))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "is a list"),
        ("just words", "is a str"),
        ("a: !!python/object/apply:os.system [ls]", "not plain YAML"),
        ("a: [1", "not plain YAML"),
        ("a: 1\na: 2", "duplicate key 'a'"),
        ("a: {b: 1, b: 2}", "duplicate key 'b'"),
        ("\x00", "not plain YAML"),
        (BOMB, r"not plain YAML: is too much with its aliases written out \(line 5\)"),
        ("sweep: {dram: &a [*a]}", "not plain YAML: an alias stands for what it is in"),
        ("a: " + "[" * 31 + "]" * 31, r"not plain YAML: is nested too deeply \(line 1\)"),
        ("a: " + "[" * 50_000, "not plain YAML: is nested too deeply"),
        ("a: " + "b" * 1_000_000, "is larger than 1 MB"),
        ('a: 1\nname: "x\\e[31m"', r"not plain YAML: has a control character \(line 2\)"),
        ('"\\x07": 1', "not plain YAML: has a control character"),
        ("a: 1\nb: 0x" + "f" * 9000, r"not plain YAML: has a number of too many digits \(line 2\)"),
        ("a: " + "9" * 5000, "not plain YAML: Exceeds the limit"),
        ("a: !!binary aGk=", r"not plain YAML: has a binary \(line 1\)"),
        ("a: !!set {b}", "not plain YAML: has a set"),
    ],
)
def test_yaml_is_one_plain_mapping(tmp_path, text, complaint):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint) as error:
        read_yaml(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_numbers_with_an_exponent_need_no_point(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1e-3\nb: -2E+4\nc: 1.5e2\nd: 2e\ne: '3e1'\nf: e3\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 0.001, "b": -20000.0, "c": 150.0, "d": "2e", "e": "3e1", "f": "e3"}


def test_a_date_is_a_text_and_a_large_number_a_number(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(f"a: 2026-11-26\nb: 2026-11-26 10:00:00\nc: {10**90}\nd: 0x10\n")
    assert read_yaml(path) == {"a": "2026-11-26", "b": "2026-11-26 10:00:00", "c": 10**90, "d": 16}


def test_yaml_of_many_levels_and_letters_is_read(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text("a: " + "[" * 28 + "1" + "]" * 28 + "\nb: " + "c" * 900_000)
    assert len(read_yaml(path)["b"]) == 900_000
    path.write_text("a: &x [1, {b: 2}]\nc: *x\nd: [*x, *x]")
    assert read_yaml(path) == {"a": [1, {"b": 2}], "c": [1, {"b": 2}], "d": [[1, {"b": 2}]] * 2}
    fifo = tmp_path / "fifo.yaml"
    os.mkfifo(fifo)
    for what in (fifo, tmp_path):
        with pytest.raises(InputError, match="is not a file; give a YAML file"):
            read_yaml(what)


def test_complaints_quote_little(tmp_path):
    data = {
        "name": "x",
        "flash": {"read_bandwidth": "9" * 10_000 + " +"},
        "dram": {"capacity": [["y" * 100] * 50] * 50},
    }
    with pytest.raises(InputError) as error:
        parse(Device, data, tmp_path)
    assert len(str(error.value)) < 300
    assert "'99999" in str(error.value)
    assert "9999... is not a number with a unit" in str(error.value)
    data["flash"]["read_bandwidth"] = [["y" * 100] * 50] * 50
    with pytest.raises(InputError, match="has no unit") as error:
        parse(Device, data, tmp_path)
    assert len(str(error.value)) < 300


def test_yaml_that_is_no_text(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="not a UTF-8 text file"):
        read_yaml(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(tmp_path / "missing.yaml")


def test_a_complaint_names_file_field_and_what_is_wrong():
    data = {"name": "x", "flash": {"read_bandwidth": 3}, "dram": {"capacity": "1 GB", "bandwidth": "1 GB/s", "x": 1}}
    with pytest.raises(InputError, match=r"dev\.yaml: flash\.read_bandwidth: 3 has no unit.*and 1 more"):
        parse(Device, data, "dev.yaml")


def test_write_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write(path, "old")

    def fails(temporary):
        temporary.write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        write(path, fails)
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "file" / "below.txt", "x")


def test_what_is_written_is_an_ordinary_file_whatever_wrote_it(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.touch()

    def privately(temporary):
        temporary.write_text("text")
        temporary.chmod(0o600)

    write(tmp_path / "a.txt", "text")
    write(tmp_path / "b.txt", privately)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes == {ordinary.stat().st_mode}


def test_a_path_below_a_file_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/deep\.txt: cannot be written"):
        write(tmp_path / "file/deep.txt", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


LINES = """\
title: x          # 1
part:
  rate: 3         # 3
  run: [a, b]
parts:
- dip             # 6
- dip-ca:
    gamma: 3      # 8
- {up: {fraction: 2}}
sweep:
  flash.page: [1] # 11
alias: &a {x: 1}  # 12
other: *a
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("title: must be", 1),
        ("part.rate: must be", 3),
        ("part: rate: must be", 3),
        ("part.colour: is required", 2),  # missing from there
        ("parts.1: must be", 7),
        ("parts: dip: no such", 6),
        ("parts: dip-ca: gamma: must be", 8),
        ("parts: up: fraction: must be", 9),
        ("sweep.flash.page: is", 11),
        ("other.x: must be", 12),  # where it is written
        ("titles: must be", None),
        ("title", None),
    ],
)
def test_the_line_of_a_field(tmp_path, text, line):
    (tmp_path / "a.yaml").write_text(LINES)
    assert line_of(compose(tmp_path / "a.yaml"), text) == line


@pytest.mark.parametrize("text", ["a: [1", BOMB, "a: " + "[" * 31 + "]" * 31, "", "a: \x07"])
def test_what_cannot_be_read_has_no_lines(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    assert line_of(compose(tmp_path / "a.yaml"), "a: must be") is None
    assert compose(tmp_path / "missing.yaml") is None
