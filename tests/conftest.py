"""Settings of the whole suite."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# No test fails on a clock: on a busy machine drawing an example can take longer than hypothesis likes.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _no_seed_of_another_test() -> None:
    """Lightning leaves a run's seed in the environment, where models look for it."""
    os.environ.pop("PL_GLOBAL_SEED", None)
