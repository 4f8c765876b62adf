"""Fixtures for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Tests start the command hundreds of times: half of their time would go into compiling it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The same examples on every run, however busy the machine: a verdict on a change must not depend
# on luck.  HYPOTHESIS_PROFILE=explore looks for new ones, as `make test-slow` does.
_PATIENT = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
settings.register_profile(
    "verdict", deadline=None, derandomize=True, suppress_health_check=_PATIENT
)
settings.register_profile("explore", deadline=None, suppress_health_check=_PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "verdict"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real checkpoints and notes beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared with real checkpoints")
    return folder
