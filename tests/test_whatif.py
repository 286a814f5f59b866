"""The page on prefetch and drafts: what it maps can run, and it shows what its command prints."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from dipsim.study.points import points

pytestmark = pytest.mark.slow


@pytest.fixture
def whatif(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(checkout / "benchmarks"))
    sys.modules.pop("whatif", None)
    import whatif

    return whatif


def test_the_page_shows_every_map_and_the_machines_as_they_are(checkout: Path, whatif: ModuleType) -> None:
    page = (checkout / "docs/background/whatif.md").read_text(encoding="utf-8")
    for machine in whatif.MACHINES:
        for name in machine.maps():
            assert f"(whatif/{machine.name}-{name}.png)" in page
            assert (checkout / f"docs/background/whatif/{machine.name}-{name}.png").stat().st_size > 10_000
    for row in whatif.machines():
        assert f"| {' | '.join(row)} |" in page, "run `python benchmarks/whatif.py --write`"


def test_every_map_can_run_and_has_its_baselines_once(whatif: ModuleType) -> None:
    for machine in whatif.MACHINES:
        for name, (_, options, values) in machine.maps().items():
            wanted = points(whatif.experiment(**machine.same, **options, sweep=values))
            without = [point for point in wanted if not point.on_clock]
            assert len(without) == {"idle": 4, "lanes": 1, "buffer": 4, "drafts": 1}[name]


def test_the_mac_that_won_is_as_fast_and_as_idle_as_published(whatif: ModuleType) -> None:
    found = whatif.run(whatif.experiment(**whatif.m4_max()))[0].summary()
    assert found["tokens_per_s"] == pytest.approx(3.20, rel=0.01)
    assert 1 - found["utilisation"]["flash"] == pytest.approx(0.3, abs=0.01)
