"""Every prefix and every unit, in both directions."""

import pytest

from dipsim.basics import units

PREFIXES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
SMALL = {"": 1, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9}


@pytest.mark.parametrize(("prefix", "scale"), [*PREFIXES.items(), ("K", 1000)])
def test_bytes_and_bits(prefix, scale):
    assert units.parse(f"3 {prefix}B", "size") == 3 * scale
    assert units.parse(f"3 {prefix}B/s", "bandwidth") == 3 * scale
    for bits in ("b", "bit") if prefix != "K" else ():
        assert units.parse(f"16 {prefix}{bits}", "size") == 2 * scale
        assert units.parse(f"16 {prefix}{bits}/s", "bandwidth") == 2 * scale
    if prefix == "K":
        with pytest.raises(ValueError, match="'Kb' is not a unit of size"):
            units.parse("1 Kb", "size")


def test_what_is_asked_of_a_run():
    assert units.parse("12.5 tokens/s", "speed") == 12.5
    assert units.parse("20 mJ/token", "energy per token") == pytest.approx(0.02)


@pytest.mark.parametrize(("prefix", "scale"), SMALL.items())
def test_small_units(prefix, scale):
    assert units.parse(f"3 {prefix}s", "time") == pytest.approx(3 * scale)
    assert units.parse(f"3 {prefix}J/B", "energy per byte") == pytest.approx(3 * scale)
    assert units.parse(f"3 {prefix}J/bit", "energy per byte") == pytest.approx(24 * scale)
    assert units.parse(f"3 {prefix}J/FLOP", "energy per operation") == pytest.approx(3 * scale)


def test_picojoules_are_energy_and_picoseconds_are_no_time():
    assert units.parse("3 pJ/B", "energy per byte") == pytest.approx(3e-12)
    with pytest.raises(ValueError, match="'ps' is not a unit of time"):
        units.parse("3 ps", "time")


@pytest.mark.parametrize(("prefix", "scale"), [*list(PREFIXES.items())[:5], ("P", 1e15)])
def test_operations(prefix, scale):
    assert units.parse(f"3 {prefix}FLOP/s", "throughput") == 3 * scale
    if prefix != "P":
        assert units.parse(f"3 {prefix}/s", "rate") == 3 * scale


@pytest.mark.parametrize(
    ("text", "good"),
    [("1.1e-21 B", True), ("1e-21 B", False), ("9.9e20 B", True), ("1e21 B", False), ("0 B", False)],
)
def test_what_is_absurd(text, good):
    if good:
        assert units.parse(text, "size") == float(text.split()[0])
    else:
        with pytest.raises(ValueError, match=r"must be more than 0, and below 1e21 in SI units"):
            units.parse(text, "size")


def test_a_negative_time_is_refused_also_where_0_is_not():
    assert units.parse("0 s", "time", zero=True) == 0
    for text in ("-1 s", "-0.5 us", "1e21 s"):
        with pytest.raises(ValueError, match="must be 0 or more"):
            units.parse(text, "time", zero=True)


def test_a_long_text_is_no_number():
    longest = "1" + " " * (units.LONGEST - 3) + "kB"
    assert units.parse(longest, "size") == 1e3
    assert (units.dimension_of(longest), units.dimension_of(f" {longest}")) == ("size", None)
    with pytest.raises(ValueError, match="is not a number with a unit"):
        units.parse("1" + " " * (units.LONGEST - 2) + "kB", "size")


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (1.5e9, "size", "1.5 GB"),
        (999, "size", "999 B"),
        (1000, "size", "1 kB"),
        (2e6, "bandwidth", "2 MB/s"),
        (0.5, "size", "0.5 B"),
        (60 * 1e-6, "time", "60 us"),
        (6e-5, "time", "60000 ns"),
        (1, "time", "1 s"),
        (3e-10, "time", "0.3 ns"),
        (2e12, "throughput", "2 TFLOP/s"),
        (5e3, "rate", "5 k/s"),
        (4e-9, "energy per byte", "4 nJ/B"),
        (8e-12, "energy per byte", "1 pJ/bit"),
        (5e-12, "energy per byte", "5 pJ/B"),
        (5e-12, "energy per operation", "5 pJ/FLOP"),
        (1 / 3, "size", "0.3333333333333333 B"),
        (1e9 / 3, "size", "333333333.3333333 B"),
    ],
)
def test_writing(value, dimension, text):
    assert units.write(value, dimension) == text
    assert units.parse(text, dimension) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5 B"), (999, "999 B"), (999.4, "999 B"), (999.5, "1 kB"), (1234567, "1.23 MB"), (9.996e8, "1 GB"),
     (5e12, "5e+03 GB")],
)  # fmt: skip
def test_showing(value, text):
    assert units.show(value, "size") == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.01234, 3, "0.0123"), (71.49, 3, "71.5"), (1234, 3, "1,234"), (0, 3, "0"), (1, 3, "1.00"), (9.99, 2, "10.0"),
     (16.813, 4, "16.81"), (-2.5, 3, "-2")],
)  # fmt: skip
def test_significant_digits(value, digits, text):
    assert units.significant(value, digits) == text
