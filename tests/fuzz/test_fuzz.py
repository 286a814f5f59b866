"""Sound inputs are accepted, and a hundred damaged ones of each reader are accepted or refused in one line."""

from itertools import count, islice

import pytest
from fuzz.readers import readers
from fuzz.runner import feed, limited, made, outcome

COMMANDS = {  # that read a file, before its path
    **dict.fromkeys(("device", "recipe", "trace of activations", "trace of routing", "layout"), ("check",)),
    "experiment": ("run",),
    "config": ("recipe", "--out", "made.yaml", "--shape"),
    **{f"import of {name}": ("import", name, "--out", "made.safetensors") for name in ("colibri", "warp", "vllm")},
}
INPUTS = 100  # of each reader; `make fuzz` has two hundred times as many


@pytest.fixture(scope="module")
def each(tmp_path_factory):
    return readers(tmp_path_factory.mktemp("sound"))


@pytest.mark.xdist_group("fuzz")
def test_sound_inputs_are_accepted(each, tmp_path):
    found = {
        (reader.name, index): outcome(reader, data, tmp_path / reader.name)
        for reader in each
        if not reader.costly  # `plot` has tests of its own
        for index, data in enumerate(reader.damaged.sound)
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


@pytest.mark.xdist_group("fuzz")
def test_the_command_line_ends_with_2_and_one_line(each, cli_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for reader in each:
        if (command := COMMANDS.get(reader.name)) is None:
            continue
        folder = tmp_path / reader.name
        inputs = (made(reader, seed) for seed in count())
        for data in islice((data for data in inputs if outcome(reader, data, folder) == "refused"), 4):
            (folder / reader.file).write_bytes(data)
            status, _, complaint = cli_run(*command, folder / reader.file)
            assert status == 2, reader.name
            assert complaint.startswith("error: "), complaint
            assert complaint.count("\n") == 1, complaint
            assert len(complaint) <= 2020, complaint
