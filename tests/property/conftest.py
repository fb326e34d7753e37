"""Hypothesis profiles: `ci` is the default; HYPOTHESIS_PROFILE=deep looks a hundred times longer."""

import os
from datetime import timedelta

from hypothesis import HealthCheck, settings

settings.register_profile("ci", max_examples=150, deadline=timedelta(seconds=5), suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", max_examples=6_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
