"""The process in which files are timed: `benchmark.py` starts it, since what a CPU may do is settled once a process."""

import ctypes
import json
import platform
import struct
import sys
import time

import numpy as np

from tfcompress.tflite.evaluate import open_interpreter, quantize


def time_in_turn(paths, threads, warm_up, seconds, fewest):
    """Seconds of single inferences, (runs, files): one of each file in turn.

    Args:
        paths: .tflite files.
        threads: number of threads.
        warm_up: seconds per file before the first inference that counts.
        seconds: seconds per file.
        fewest: fewest runs.
    """
    interpreters = [_loaded(path, threads) for path in paths]
    _rounds(interpreters, warm_up * len(paths), 1)
    return np.asarray(_rounds(interpreters, seconds * len(paths), fewest))


def deny_amx():
    """Makes Linux refuse this process the matrix units of an x86 CPU, upon which LiteRT takes its vector kernels.

    A process must ask for them by arch_prctl(ARCH_REQ_XCOMP_PERM); a seccomp filter answers that call with EPERM.

    Returns:
        Whether the process cannot use them now: False where Linux does not allow a filter.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return True
    arch_prctl, req_xcomp_perm = 158, 0x1023
    program = [
        (0x20, 0, 0, 0),  # load the number of the system call
        (0x15, 0, 3, arch_prctl),  # another one: allow
        (0x20, 0, 0, 16),  # load its first argument
        (0x15, 0, 1, req_xcomp_perm),  # another one: allow
        (0x06, 0, 0, 0x0005_0001),  # return errno 1, EPERM
        (0x06, 0, 0, 0x7FFF_0000),  # return allow
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    set_no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    return not (libc.prctl(set_no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, filter_mode, header, 0, 0))


def _loaded(path, threads):
    interpreter = open_interpreter(path, threads)
    source = interpreter.get_input_details()[0]
    values = np.random.default_rng(0).random(source["shape"], np.float32)
    interpreter.set_tensor(source["index"], quantize(values, source))
    return interpreter


def _rounds(interpreters, seconds, fewest):
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


def main():
    """Reads the arguments of `time_in_turn` and `amx` as JSON, and writes the seconds as JSON."""
    arguments = json.load(sys.stdin)
    if not arguments.pop("amx") and not deny_amx():
        print("This system refuses the filter that turns AMX off: the CPU's matrix units may be used.", file=sys.stderr)
    json.dump(time_in_turn(**arguments).tolist(), sys.stdout)


if __name__ == "__main__":
    main()
