"""A table is read as its columns say, or refused with its row and column."""

import numpy as np
import pytest

from dipsim.basics.errors import InputError
from dipsim.results.csv_table import ANYTHING, COUNT, POSITIVE, SHARE, TEXT, Column, read_table, refuse_rows

COLUMNS = {"name": TEXT, "count": COUNT, "speed": POSITIVE, "share": SHARE, "late": Column(float, 0, empty=np.nan)}
SOUND = "share,name,speed,more,count,late\n1,a,2.5,x,3,\n0.5,b,1e-9,y,4.0,7\n"


@pytest.fixture
def table(tmp_path):
    """Reads a text as a table."""

    def read(text, columns=COLUMNS, others=lambda _: None):
        (tmp_path / "t.csv").write_text(text)
        return read_table(tmp_path / "t.csv", columns, others)

    return read


def test_columns_are_read_by_name_in_the_files_order(table):
    found = table(SOUND)
    assert list(found) == ["share", "name", "speed", "count", "late"]
    assert found["count"].tolist() == [3, 4]
    assert found["count"].dtype.kind == "i"
    assert found["speed"].tolist() == [2.5, 1e-9]
    assert np.isnan(found["late"][0])
    assert found["late"][1] == 7


def test_a_word_may_stand_for_nothing(table):
    columns = COLUMNS | {"late": Column(float, 0, empty=-1, blank="never")}
    assert table(SOUND.replace("4.0,7", "4.0,never"), columns)["late"].tolist() == [-1, -1]
    with pytest.raises(InputError, match="column late: row 2: 'ever' is not a number"):
        table(SOUND.replace("4.0,7", "4.0,ever"), columns)


def test_other_columns_and_defaults(table):
    found = table("a,b,c,d\n1,1.5,inf,x\n2,2,3,1\n", {"e": Column(default="none")}, lambda _: ANYTHING)
    assert [found[name].dtype.kind for name in "abc"] == ["i", "f", "f"]
    assert found["d"].tolist() == ["x", "1"]
    assert found["e"].tolist() == ["none", "none"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no rows"),
        (SOUND.splitlines()[0], "has no rows"),
        (SOUND.replace("speed", "sped"), "column speed: is missing"),
        (SOUND.replace("more", "speed"), "column 'speed': is there twice"),
        (SOUND.replace("x,3,", "x,3"), "row 1: has 5 of 6 fields"),
        (SOUND + "1,2,3,4,5,6,7\n", "row 3: has 7 of 6 fields"),
        (SOUND.replace("2.5", "0"), "column speed: row 1: '0' is not a number from 1e-30 to 1e+30"),
        (SOUND.replace("2.5", "1e300"), "column speed: row 1: '1e300' is not a number"),
        (SOUND.replace("2.5", "nan"), "column speed: row 1: 'nan' is not a number"),
        (SOUND.replace("2.5", ""), "column speed: row 1: '' is not a number"),
        (SOUND.replace("1e-9", "1e-300"), "column speed: row 2: '1e-300' is not a number"),
        (SOUND.replace("0.5", "1.5"), "column share: row 2: '1.5' is not a number from 0 to 1"),
        (SOUND.replace("4.0", "4.5"), "column count: row 2: '4.5' is not a whole number from 1"),
        (SOUND.replace("4.0", "inf"), "column count: row 2: 'inf' is not a whole number"),
        (SOUND.replace("4.0", "1" * 400), "is not a whole number"),
        (SOUND.replace(",a,", ",a\x1b[31m,"), "letters that cannot be shown"),
        (SOUND.replace(",a,", f",{'a' * 1001},"), "is too long"),
        (SOUND.replace(",a,", f",{'a' * 200_000},"), "is not CSV"),
        (SOUND + '"1', "is not CSV"),
    ],
)
def test_what_does_not_fit_is_one_line(table, text, complaint):
    with pytest.raises(InputError) as error:
        table(text)
    message = str(error.value)
    assert complaint in message
    assert "t.csv: " in message
    assert "\n" not in message
    assert len(message) < 500


def test_the_first_bad_row_is_named(tmp_path):
    refuse_rows(tmp_path / "t.csv", [False, False], "is bad")
    with pytest.raises(InputError, match=r"t\.csv: row 2: is bad$"):
        refuse_rows(tmp_path / "t.csv", [False, True, True], "is bad")
