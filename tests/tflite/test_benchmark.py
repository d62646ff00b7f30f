"""Latency: plausible numbers, in the order asked for."""

import pytest

import tfcompress as tfc
from tfcompress.tflite import benchmark


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(benchmark, "WARM_UP_SECONDS", 0.02)
    monkeypatch.setattr(benchmark, "SECONDS", 0.1)


def test_one_file(small_files):
    latency = tfc.benchmark_tflite(small_files["int8"])
    assert 0 < latency.median <= latency.p90 < 100
    assert latency.runs >= benchmark.FEWEST_RUNS


def test_interleaved_files_run_equally_often(small_files, monkeypatch):
    slow, fast = tfc.benchmark_interleaved([small_files["int16x8"], small_files["int8"]])
    assert slow.runs == fast.runs
    assert slow.median > fast.median  # reference kernels against XNNPACK: about 10x here


def test_bad_arguments(small_files):
    with pytest.raises(ValueError, match="threads=0"):
        tfc.benchmark_tflite(small_files["int8"], threads=0)
    with pytest.raises(ValueError, match="paths="):
        tfc.benchmark_interleaved([])
