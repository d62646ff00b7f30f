"""Training speed: this package's `fit` against plain tf_keras, ResNet20 and MobileNet on CIFAR-10-sized images.

    python -m experiments.bench_training

Every round trains tf_keras, `fit` in float32 and `fit` in bfloat16 one after the other on the same synthetic images
(speed does not depend on their content): ResNet20, what is left of it without 54 % of its MACs, and MobileNet. Of each
the fastest epoch counts, since other work on the machine can only slow an epoch down; the first one, which compiles,
never does. Ratios are taken within a round, so that a machine whose speed drifts does not favour one of them.

Every round ends with what --jobs of the experiments does: `fit` in bfloat16 of the pruned ResNet20 on every core at the
same time, each in a process of its own, whose speeds add up. Writes results/bench/training.json.
"""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
from absl import app, flags

from experiments.runner import write_json

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 3, "how often each of the three is trained")
flags.DEFINE_integer("images", 2560, "images of an epoch")
flags.DEFINE_integer("epochs", 5, "epochs of one training; the first is not counted")
flags.DEFINE_string("results", "results", "where the record goes")

BATCH = 128


def main(_):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (FLAGS.images, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, FLAGS.images)
    rounds = []
    for number in range(FLAGS.rounds):
        speeds = {}
        for name, network in (("ResNet20", _resnet20), ("ResNet20 pruned", _pruned), ("MobileNet", _mobilenet)):
            speeds[name] = {
                "tf_keras": _plain_tf_keras(network(), images, labels),
                "fit float32": _fit(network(), images, labels, "float32"),
                "fit bfloat16": _fit(network(), images, labels, "mixed_bfloat16"),
            }
            listed = ", ".join(f"{how} {speed:,.0f} images/s" for how, speed in speeds[name].items())
            print(f"round {number + 1}/{FLAGS.rounds}, {name}: {listed}", flush=True)
        if hasattr(os, "sched_getaffinity"):
            side_by_side = speeds["ResNet20 pruned"]["fit bfloat16, one on each core"] = _one_on_each_core(
                images, labels
            )
            print(f"round {number + 1}/{FLAGS.rounds}, one on each core: {side_by_side:,.0f} images/s", flush=True)
        rounds.append(speeds)
    _write(rounds)


def _resnet20():
    from tfcompress.models import resnet

    return resnet(20)


def _pruned():
    from tfcompress import prune_channels

    return prune_channels(_resnet20(), "l2", macs_reduction=0.54).model


def _mobilenet():
    from tfcompress.models import mobilenet

    return mobilenet()


def _plain_tf_keras(network, images, labels):
    from tfcompress.keras2 import tf_keras, to_tf_keras

    model = to_tf_keras(network)
    optimizer = tf_keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=5e-3)
    model.compile(optimizer, tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"])
    seconds = []

    class Clock(tf_keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            seconds.append(time.perf_counter() - self.start)

    x = images.astype("float32") / 255
    model.fit(x, labels, BATCH, FLAGS.epochs, callbacks=[Clock()], verbose=0)
    return len(images) / min(seconds[1:])


def _fit(network, images, labels, precision, epochs=None):
    from tfcompress.training import TrainingConfig, fit

    config = TrainingConfig(epochs or FLAGS.epochs, BATCH, weight_decay=5e-3, precision=precision)
    history = fit(network, images, labels, config)
    return len(images) / min(row["seconds"] for row in history[1:])


def _one_on_each_core(images, labels):
    """The sum of the speeds of trainings that run at the same time."""
    cores = sorted(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(len(cores)) as pool:
        return sum(pool.starmap(_fit_on, [(core, images, labels, FLAGS.epochs) for core in cores], chunksize=1))


def _fit_on(core, images, labels, epochs):
    os.sched_setaffinity(0, {core})  # before TensorFlow counts them
    return _fit(_pruned(), images, labels, "mixed_bfloat16", epochs)


def _write(rounds):
    from tfcompress.reporting import environment

    ratios = {
        name: {
            how: float(np.median([speeds[name][how] / speeds[name]["tf_keras"] for speeds in rounds]))
            for how in rounds[0][name]
            if how != "tf_keras"
        }
        for name in rounds[0]
    }
    for name, faster in ratios.items():
        for how, ratio in faster.items():
            print(f"{name}, {how}: {ratio:.2f} x the speed of plain tf_keras (median of {len(rounds)} pairs)")
    record = {
        "benchmark": "training, 32x32x3, batch 128",
        "command": " ".join(["python -m experiments.bench_training", *sys.argv[1:]]),
        "environment": environment(),
        "images_per_second": rounds,
        "median_ratio_to_tf_keras": ratios,
    }
    print(f"written: {write_json(Path(FLAGS.results) / 'bench' / 'training.json', record)}")


if __name__ == "__main__":
    app.run(main)
