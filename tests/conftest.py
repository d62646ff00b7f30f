"""Settings for every test: quiet TensorFlow, and the small digits as images."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest

from tfcompress import datasets


@pytest.fixture(scope="session")
def digits():
    """The digits data set, 28x28x1."""
    return datasets.load("digits")


@pytest.fixture
def rng():
    """A seeded numpy generator."""
    return np.random.default_rng(0)
