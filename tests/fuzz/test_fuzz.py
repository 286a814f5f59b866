"""Sound inputs are accepted, and a hundred damaged ones of each reader are accepted or refused in one line."""

import pytest
from fuzz.readers import readers
from fuzz.runner import feed, limited, outcome

INPUTS = 100  # of each reader; `make fuzz` has two hundred times as many


@pytest.fixture(scope="module")
def each(tmp_path_factory):
    return readers(tmp_path_factory.mktemp("sound"))


@pytest.mark.xdist_group("fuzz")
def test_sound_inputs_are_accepted(each, tmp_path):
    found = {
        (reader.name, index): outcome(reader, data, tmp_path / reader.name)
        for reader in each
        for index, data in enumerate(reader.damaged.sound[: 1 if reader.costly else None])
    }
    assert {where: what for where, what in found.items() if what != "accepted"} == {}


@pytest.mark.xdist_group("fuzz")
def test_damaged_inputs_are_accepted_or_refused_in_one_line(each, tmp_path):
    refused = set()
    for reader in each:
        folder = tmp_path / reader.name
        folder.mkdir()
        with limited():
            counts, failures = feed(reader, range(1 if reader.costly else INPUTS), folder, tmp_path / "kept")
        assert failures == {}, reader.name
        refused |= {reader.name} if counts["refused"] else set()
    assert refused >= {reader.name for reader in each if not reader.costly}
