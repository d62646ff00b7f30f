"""Latency: plausible numbers, of files that take turns."""

import pathlib
import subprocess
import sys

import pytest

import tfcompress as tfc
from tfcompress.tflite import benchmark, timing

INFO = pathlib.Path("/proc/cpuinfo")
CPU = INFO.read_text() if INFO.exists() else ""


def test_one_file(small_files):
    latency = tfc.benchmark_tflite(small_files["int8"])
    assert 0 < latency.median <= latency.p90 < 100
    assert latency.runs >= benchmark.FEWEST_RUNS


def test_interleaved_files_take_turns(small_files, monkeypatch):
    """With a clock that counts its own calls, every inference takes one tick, whichever file it is of."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: 1e-3 * next(ticks))
    times = timing.time_in_turn([small_files["int16x8"], small_files["int8"]], 1, 0.02, 0.1, 20)
    assert times.shape[0] >= 20 and times.shape[1] == 2
    assert times == pytest.approx(1e-3)


@pytest.mark.skipif("amx_tile" not in CPU, reason="only a CPU with matrix units can be denied them")
@pytest.mark.parametrize("amx", [False, True])
def test_matrix_units_are_denied(amx):
    """The kernel's answer to a process that asks for them, after `deny_amx` and without it."""
    ask = "import ctypes; print(ctypes.CDLL(None).syscall(158, 0x1023, 18))"
    program = ask if amx else f"from tfcompress.tflite.timing import deny_amx; assert deny_amx(); {ask}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == (0 if amx else -1)


def test_several_files_in_a_process_of_their_own(small_files):
    latencies = tfc.benchmark_interleaved([small_files["int8"], small_files["float32"]], amx=True)
    assert latencies[0].runs == latencies[1].runs >= benchmark.FEWEST_RUNS


def test_corrupt_file_is_named(tmp_path):
    path = tmp_path / "cut.tflite"
    path.write_bytes(b"TFL3 cut short")
    with pytest.raises(ValueError, match=r"cut\.tflite .*is corrupt"):
        tfc.benchmark_tflite(path)


def test_bad_arguments(small_files):
    with pytest.raises(ValueError, match="threads=0"):
        tfc.benchmark_tflite(small_files["int8"], threads=0)
    with pytest.raises(ValueError, match="paths="):
        tfc.benchmark_interleaved([])


def test_the_process_that_measures_loads_no_keras():
    """It would take seconds and most of the memory of the inference."""
    code = "import sys, tfcompress.tflite.timing; print({'keras', 'tensorflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
