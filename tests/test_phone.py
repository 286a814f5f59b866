"""The phone that streams experts: its device is what the fit says, and its runs are predicted as the page says."""

import sys
from pathlib import Path

import numpy as np
import pytest

from dipsim.timing.device import Device

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("phone")]  # two tests use the same predictions


@pytest.fixture(scope="module")
def phone():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
        sys.modules.pop("phone", None)
        import phone

        yield phone


@pytest.fixture(scope="module")
def latencies(phone):
    """The predicted seconds of each token, by run."""
    device = Device.load("oneplus-15r")
    return {run.name: phone.predict(run, device).latency_s for run in phone.RUNS}


def test_the_shipped_device_is_the_fitted_one(phone):
    assert phone.as_device(phone.fit()) == Device.load("oneplus-15r")


def test_every_run_that_was_not_fitted_is_predicted_within_15_percent_and_half_of_them_within_7(phone, latencies):
    device = Device.load("oneplus-15r")
    error, calm = {}, {}
    for run in phone.RUNS:
        latency, measured = 1e3 * latencies[run.name], run.tokens["wall_ms"].to_numpy()
        error[run.name] = measured.mean() / latency.mean() - 1
        if run.cache:
            quiet = phone.undisturbed(run)
            calm[run.name] = np.corrcoef(latency[quiet], measured[quiet])[0, 1]
    predicted = {name: abs(value) for name, value in error.items() if name not in phone.FITTED}
    assert len(predicted) == 6
    assert max(predicted.values()) < 0.15
    assert sorted(predicted.values())[3] < 0.07
    assert device.evidence.error == pytest.approx(max(predicted.values()), abs=6e-4)
    assert min(value for name, value in calm.items() if name.startswith("qwen")) > 0.95
    assert calm["gemma_traced"] == pytest.approx(0.824, abs=5e-3)


def test_the_signs_of_what_was_tried(latencies):
    speed = {name: 1 / latency.mean() for name, latency in latencies.items()}
    assert speed["qwen_stream_ov"] < 0.85 * speed["qwen_stream"]
    assert speed["qwen_c4000_l4_ov"] > 1.05 * speed["qwen_c4000_l4"]
    for cache in ("c2000", "c4000"):
        assert speed[f"qwen_{cache}_l2"] < 0.95 * speed[f"qwen_{cache}_l4"]


def test_the_page_shows_every_run_of_the_phone(checkout, phone):
    page = Path(checkout / "docs/background/experts.md").read_text(encoding="utf-8")
    for run in phone.RUNS:
        assert f"| `{run.name}` |" in page
