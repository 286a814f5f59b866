import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipsim.basics import units


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("1.5 GB/s", "bandwidth", 1.5e9),
        ("1.5GB/s", "bandwidth", 1.5e9),
        ("8 Gb/s", "bandwidth", 1e9),
        ("1 GiB", "size", 2.0**30),
        ("4 Gb", "size", 0.5e9),
        ("64 kB", "size", 64e3),
        ("60 us", "time", 60e-6),
        ("60 µs", "time", 60e-6),
        ("2 TFLOP/s", "throughput", 2e12),
        ("52 pJ/bit", "energy per byte", 416e-12),
        ("1e3 MB", "size", 1e9),
    ],
)
def test_reads(text, dimension, value):
    assert units.parse(text, dimension) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    "text",
    ["1.5", 1.5, 4, True, None, "GB/s", "1.5 GB", "1,5 GB/s", "-1 GB/s", "0 GB/s", "nan GB/s", "inf GB/s", "1.5 gb/s",
     "1.5 GB/S", "1e999 GB/s", "1.5 GBps", "4800 MT/s", "", "1 2 GB/s", [1], {"GB/s": 1}],
)  # fmt: skip
def test_refuses_with_one_line_and_an_example(text):
    with pytest.raises(ValueError, match=r'write it like "1\.5 GB/s"') as error:
        units.parse(text, "bandwidth")
    assert "\n" not in str(error.value)


def test_zero_only_where_it_makes_sense():
    assert units.parse("0 us", "time", zero=True) == 0
    with pytest.raises(ValueError, match="more than 0"):
        units.parse("0 us", "time")


@given(
    st.floats(min_value=1e-12, max_value=1e18),
    st.sampled_from(["size", "bandwidth", "time", "throughput", "energy per byte", "energy per operation"]),
)
def test_what_is_written_reads_back_exactly(value, dimension):
    assert units.parse(units.write(value, dimension), dimension) == value


def test_people_see_three_digits():
    assert units.show(64438272, "size") == "64.4 MB"
    assert units.show(0, "size") == "0 B"


@pytest.mark.parametrize(
    ("values", "dimension", "unit"),
    [
        ([5e7, 7e7], "size", ("MB", 1e6)),
        ([5e8, 1e9, 8e9], "size", ("GB", 1e9)),
        ([5e7, 2e9, 3e9], "size", ("MB", 1e6)),  # 50 MB would be 0.05 GB
        ([0.5e9, 2e9, 4e9], "bandwidth", ("GB/s", 1e9)),
        ([4e8, 9e8], "bandwidth", ("MB/s", 1e6)),
        ([0.15, 0.0], "time", ("ms", 1e-3)),
        ([1e-12], "time", ("ns", 1e-9)),
        ([], "size", ("B", 1.0)),
    ],
)
def test_the_unit_of_an_axis(values, dimension, unit):
    assert units.unit_of(values, dimension) == unit
