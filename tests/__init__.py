"""What must be set before numpy, torch and huggingface_hub are loaded: one thread each, no network."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
for library in ("OMP", "OPENBLAS", "MKL"):  # with more, small tests mostly wait for each other
    os.environ[f"{library}_NUM_THREADS"] = "1"

pytest.register_assert_rewrite("tests.fixtures")
