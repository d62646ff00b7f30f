"""Latency of .tflite files."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np

from tfcompress.tflite.evaluate import open_interpreter

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


def benchmark_tflite(path, threads=1, amx=False):
    """Times one file: about 0.2 s of warm-up, then about 2 s of single inferences.

    Args: as `benchmark_interleaved`, for one path.

    Returns:
        A `Latency`.
    """
    return benchmark_interleaved([path], threads, amx)[0]


def benchmark_interleaved(paths, threads=1, amx=False):
    """Times several files in turn, one inference each, so that a change of the machine's speed meets all of them alike.

    They run in a process of their own.

    Args:
        paths: .tflite files.
        threads: number of threads.
        amx: whether LiteRT may use the matrix units of a server's x86 CPU (AMX). No phone's kernels work like them:
            16 channels take them as long as 64, and small int8 networks were measured half as fast with them.

    Returns:
        List of `Latency`, in the order of `paths`.

    Raises:
        ValueError: threads < 1, no paths, or a corrupt file.
        OSError: a file cannot be read.
        RuntimeError: the timing process failed.
    """
    if threads < 1 or not paths:
        raise ValueError(f"At least one thread and one file are expected. Received: threads={threads}, paths={paths}")
    for path in paths:
        open_interpreter(path)
    arguments = {
        "paths": [os.path.abspath(path) for path in paths],
        "threads": threads,
        "warm_up": WARM_UP_SECONDS,
        "seconds": SECONDS,
        "fewest": FEWEST_RUNS,
        "amx": amx,
    }
    # No phone's memory comes in the large pages that training may have been given.
    environment = {**os.environ, "GLIBC_TUNABLES": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", "tfcompress.tflite.timing"],
        input=json.dumps(arguments),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"The process that times the files failed:\n{done.stderr[-2000:]}")
    notices = [line for line in done.stderr.splitlines() if "AMX" in line and "refuses" in line]
    print(*notices, sep="\n", end="\n" * bool(notices), file=sys.stderr)
    times = 1e3 * np.asarray(json.loads(done.stdout))
    return [Latency(float(np.median(t)), float(np.percentile(t, 90)), len(t)) for t in times.T]
