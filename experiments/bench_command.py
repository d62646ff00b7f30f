"""How long the command `tfcompress` takes to begin: `--help`, and `profile` of keras.applications' MobileNetV2.

    python -m experiments.bench_command

Every round runs each command once, in a process of its own; the record holds the wall-clock seconds of all rounds and
their medians. Writes results/bench/command.json.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

from experiments.runner import write_json

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 5, "how often each command is run")
flags.DEFINE_string("results", "results", "where the record goes")

COMMAND = [sys.executable, "-c", "import sys; from tfcompress.cli import main; sys.exit(main())"]


def main(_):
    import keras

    from tfcompress.reporting import environment

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mobilenet_v2.keras"
        keras.applications.MobileNetV2(weights=None).save(path)
        commands = {"--help": ["--help"], "profile": ["profile", str(path)]}
        seconds = {name: [] for name in commands}
        for number in range(FLAGS.rounds):
            for name, arguments in commands.items():
                start = time.perf_counter()
                subprocess.run([*COMMAND, *arguments], check=True, capture_output=True)
                seconds[name].append(round(time.perf_counter() - start, 2))
            listed = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
            print(f"round {number + 1}/{FLAGS.rounds}: {listed}", flush=True)
    record = {
        "benchmark": "time of a command, from start to end; profile of MobileNetV2, 224x224, 1,000 classes",
        "command": " ".join(["python -m experiments.bench_command", *sys.argv[1:]]),
        "environment": environment(),
        "seconds": seconds,
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
    }
    print(f"written: {write_json(Path(FLAGS.results) / 'bench' / 'command.json', record)}")


if __name__ == "__main__":
    app.run(main)
