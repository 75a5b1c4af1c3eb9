"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No test fails on a clock: on a busy machine drawing an example can take longer than hypothesis likes.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
