"""Latency of .tflite files."""

import dataclasses
import time

import numpy as np

from tfcompress.tflite.evaluate import open_interpreter, quantize

WARM_UP_SECONDS = 0.2
SECONDS = 2.0
FEWEST_RUNS = 20


@dataclasses.dataclass(frozen=True)
class Latency:
    """Time of one inference at batch 1.

    Attributes:
        median: ms.
        p90: 90th percentile, ms.
        runs: number of timed inferences.
    """

    median: float
    p90: float
    runs: int


def benchmark_tflite(path, threads=1):
    """Times one file: about 0.2 s of warm-up, then about 2 s of single inferences.

    Args:
        path: the .tflite file.
        threads: number of threads.

    Returns:
        A `Latency`.

    Raises:
        ValueError: threads < 1 or the file is corrupt.
        OSError: the file cannot be read.
    """
    return benchmark_interleaved([path], threads)[0]


def benchmark_interleaved(paths, threads=1):
    """Times several files in turn, one inference each, so that a change of the machine's speed meets all of them alike.

    Args:
        paths: .tflite files.
        threads: number of threads.

    Returns:
        List of `Latency`, in the order of `paths`.

    Raises:
        ValueError: threads < 1, no paths, or a corrupt file.
        OSError: a file cannot be read.
    """
    if threads < 1 or not paths:
        raise ValueError(f"At least one thread and one file are expected. Received: threads={threads}, paths={paths}")
    interpreters = [_loaded(path, threads) for path in paths]
    _rounds(interpreters, WARM_UP_SECONDS * len(paths), 1)
    times = 1e3 * np.asarray(_rounds(interpreters, SECONDS * len(paths), FEWEST_RUNS))
    return [Latency(float(np.median(t)), float(np.percentile(t, 90)), len(t)) for t in times.T]


def _loaded(path, threads):
    interpreter = open_interpreter(path, threads)
    source = interpreter.get_input_details()[0]
    values = np.random.default_rng(0).random(source["shape"], np.float32)
    interpreter.set_tensor(source["index"], quantize(values, source))
    return interpreter


def _rounds(interpreters, seconds, fewest):
    """Seconds of each inference, (rounds, files)."""
    rows = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rows) < fewest:
        row = []
        for interpreter in interpreters:
            start = time.perf_counter()
            interpreter.invoke()
            row.append(time.perf_counter() - start)
        rows.append(row)
    return rows
