"""Latency: plausible numbers, of files that take turns."""

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


def test_interleaved_files_take_turns(small_files, monkeypatch):
    """With a clock that counts its own calls, every inference takes one tick, whichever file it is of."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: 1e-3 * next(ticks))
    first, second = tfc.benchmark_interleaved([small_files["int16x8"], small_files["int8"]])
    assert first.runs == second.runs
    assert first.median == pytest.approx(1) and second.median == pytest.approx(1)


def test_bad_arguments(small_files):
    with pytest.raises(ValueError, match="threads=0"):
        tfc.benchmark_tflite(small_files["int8"], threads=0)
    with pytest.raises(ValueError, match="paths="):
        tfc.benchmark_interleaved([])
