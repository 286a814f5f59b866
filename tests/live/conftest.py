"""The real model, which takes long to load, is loaded once for all tests in a process."""

from functools import cache

import pytest


@cache
def _loaded(name, dtype, device, adapter):
    from dipsim.live import models

    return models.load(name, dtype, device, adapter)


@pytest.fixture
def loaded_once(monkeypatch):
    """Stands in for `dipsim.live.models.load`, which it calls the first time that something is loaded."""
    from dipsim.live import models

    plain = models.load

    def load(name, dtype="float32", device="cpu", adapter=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(models, "load", plain)
            return _loaded(name, dtype, device, adapter)

    monkeypatch.setattr(models, "load", load)
    return load
