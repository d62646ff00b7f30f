"""Runs an experiment as a user does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _run(name, folder, *flags, **environment):
    command = [
        sys.executable,
        "-m",
        f"experiments.{name}",
        f"--workdir={folder / 'runs'}",
        f"--results={folder / 'results'}",
    ]
    return subprocess.run(
        [*command, *flags], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="session")
def run_experiment():
    """Function of the experiment's name, a folder for runs and results, flags, and environment variables."""
    return _run
