"""A killed training, started again, must end as if it had never been killed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tfcompress.training import CheckpointError
from tfcompress.training.checkpoint import load_checkpoint, save_checkpoint

SCRIPT = str(Path(__file__).with_name("resume_script.py"))


def start(kind, directory, backend):
    environment = {**os.environ, "KERAS_BACKEND": backend}
    return subprocess.Popen(
        [sys.executable, SCRIPT, kind, str(directory)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(kind, directory, backend):
    process = start(kind, directory, backend)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return re.search(r"weights (\w+)", out).group(1), out


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        ("float", "tensorflow"),
        pytest.param("float", "jax", marks=pytest.mark.slow),
        ("quantized", "tensorflow"),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, kind, backend):
    whole, _ = finish(kind, tmp_path / "whole", backend)
    process = start(kind, tmp_path / "killed", backend)
    history = tmp_path / "killed" / "history.csv"
    while not (history.exists() and len(history.read_text().splitlines()) >= 3):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    epochs_before = len(history.read_text().splitlines()) - 1
    assert epochs_before < 6, "the process ended before it could be killed"
    resumed, out = finish(kind, tmp_path / "killed", backend)
    assert out.count("epoch ") == 6 - epochs_before
    assert resumed == whole


def test_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, [np.arange(1000.0)], {"epoch": 1})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"checkpoint\.npz is damaged"):
        load_checkpoint(path)


def test_checkpoint_of_other_content_is_refused(tmp_path):
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, [np.zeros(3)], {})
    with np.load(path) as stored:
        np.savez(path, meta=stored["meta"], array_0=np.ones(3))
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(path)


def test_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, [np.zeros(3)], {"epoch": 1})

    def full_disk(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, [np.ones(3)], {"epoch": 2})
    arrays, meta = load_checkpoint(path)
    assert meta["epoch"] == 1 and arrays[0].tolist() == [0, 0, 0]
