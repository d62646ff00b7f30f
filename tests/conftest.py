"""Settings for every test: quiet TensorFlow, short timing, and the small digits as images."""

import csv
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest

from tfcompress import datasets
from tfcompress.tflite import benchmark


@pytest.fixture(scope="session", autouse=True)
def short_timing():
    """No test looks at how long an inference takes."""
    benchmark.WARM_UP_SECONDS, benchmark.SECONDS = 0.02, 0.1


@pytest.fixture(scope="session")
def digits():
    """The digits data set, 28x28x1."""
    return datasets.load("digits")


@pytest.fixture
def rng():
    """A seeded numpy generator."""
    return np.random.default_rng(0)


def pytest_addoption(parser):
    parser.addoption("--slow-results", help="write the outcome of every slow test that ran into this CSV file")


def pytest_terminal_summary(terminalreporter, config):
    """Keeps the outcomes of the slow tests, which few readers will wait for."""
    path = config.getoption("--slow-results")
    if not path:
        return
    rows = [
        (report.nodeid, outcome, f"{report.duration:.0f}")
        for outcome in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.stats.get(outcome, ())
        if "slow" in report.keywords
    ]
    with open(f"{path}.part", "w", newline="") as file:
        csv.writer(file).writerows([("test", "outcome", "seconds"), *sorted(rows)])
    os.replace(f"{path}.part", path)
