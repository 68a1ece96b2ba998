"""Settings for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# More threads than free cores make torch slower, and results must not depend on their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

settings.register_profile("tests", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=200)
settings.load_profile(os.environ.get("LLMCALC_HYPOTHESIS_PROFILE", "tests"))
