"""Speed of surgery: planning and rebuilding ResNet110 at half of every width, against `keras.models.clone_model`.

    python -m experiments.bench_surgery

Every round does both one after the other; the ratio is taken within a round, so that a machine whose speed drifts
does not favour one of them. Writes results/bench/surgery.json.
"""

import sys
import time
from pathlib import Path

import keras
import numpy as np
from absl import app, flags

from experiments.runner import write_json
from tfcompress import prune_channels
from tfcompress.models import resnet
from tfcompress.reporting.records import environment

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 7, "how often both are timed, after one round that is not counted")
flags.DEFINE_string("results", "results", "where the record goes")


def main(_):
    model = resnet(110)
    clone, prune = [], []
    for _ in range(FLAGS.rounds + 1):
        clone.append(_seconds(lambda: keras.models.clone_model(model)))
        prune.append(_seconds(lambda: prune_channels(model, ratio=0.5)))
    record = {
        "command": " ".join(["python -m experiments.bench_surgery", *sys.argv[1:]]),
        "environment": environment(),
        "network": model.name,
        "clone_model_seconds": float(np.median(clone[1:])),
        "plan_and_rebuild_seconds": float(np.median(prune[1:])),
        "ratio": float(np.median(np.divide(prune[1:], clone[1:]))),
    }
    path = write_json(Path(FLAGS.results) / "bench" / "surgery.json", record)
    print(f"plan and rebuild take {record['ratio']:.2f} times as long as clone_model; written: {path}")


def _seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    app.run(main)
