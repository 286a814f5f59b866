"""What is wrong with data is told field by field, in the words of the file and not of the classes behind it."""

import pickle

import pytest

from dipsim.basics.errors import InputError, collected, did_you_mean, named
from dipsim.basics.fields import Count, Strict, parse


class Part(Strict):
    rate: Count | tuple[int, ...] = 1
    runs: tuple[str, ...] = ()


class Whole(Strict):
    title: str
    part: Part | None = None
    parts: tuple[Part, ...] = ()
    pair: tuple[int, int] = (1, 2)
    by_name: dict[str, Part] = {}  # noqa: RUF012, pydantic copies it


def complaints(data):
    with pytest.raises(InputError) as caught:
        parse(Whole, data, "w.yaml")
    assert str(caught.value).startswith(caught.value.all[0])
    return list(caught.value.all)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"part": {"rat": 2}}, "part.rat: unknown key (did you mean rate?)"),
        ({"parts": [{}, {"run": []}]}, "parts.1.run: unknown key (did you mean runs?)"),
        ({"by_name": {"rat": {"rats": 1}}}, "by_name.rat.rats: unknown key (did you mean rate?)"),
        ({"part": {"colour": 2}}, "part.colour: unknown key; remove it or check its spelling"),
        ({"part": 7}, "part: must be a mapping, like {key: value} (got 7)"),
        ({"parts": {}}, "parts: must be a list"),
        ({"part": {"rate": "x"}}, "part.rate: must be a valid integer (got 'x')"),  # and no member of the union
        ({"pair": [3]}, "pair.1: is required but missing"),
        ({"pair": [3, 4, 5]}, "pair: has too many values"),
        ({"by_name": {7: {}}}, "by_name.7: must be a valid string (got 7)"),
    ],
)
def test_a_complaint_is_in_the_words_of_the_file(data, told):
    assert complaints({"title": "x"} | data) == [f"w.yaml: {told}"]


def test_every_field_is_told_and_what_is_misspelt_comes_first():
    told = complaints({"titel": "x", "part": {"rate": 0, "what": 1}})
    assert told == [
        "w.yaml: titel: unknown key (did you mean title?)",
        "w.yaml: title: is required but missing",
        "w.yaml: part.rate: must be greater than 0 (got 0)",
        "w.yaml: part.what: unknown key; remove it or check its spelling",
    ]


def test_an_error_of_several_lines_is_named_collected_and_sent_as_one():
    kept = ["before"]
    with collected(kept), named("outer"), named("file"):
        raise InputError("a: 1", "b: 2")
    assert kept == ["before", "outer: file: a: 1", "outer: file: b: 2"]
    sent = pickle.loads(pickle.dumps(InputError("a", "b", "c")))
    assert (str(sent), sent.all) == ("a (and 2 more)", ("a", "b", "c"))
    assert str(InputError("a")) == "a"


def test_only_what_is_alike_is_suggested():
    assert did_you_mean("papr", ["phone", "paper", "pc"]) == " (did you mean paper?)"
    assert did_you_mean("zebra", ["phone", "paper", "pc"]) == ""
    assert did_you_mean("paper", ["phone", "paper", "papers"]) == " (did you mean papers?)"  # and not itself
    assert did_you_mean(7, []) == ""
