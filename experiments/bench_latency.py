"""How much of a cut in MACs becomes speed: int8 files on one thread, before and after removing half of the MACs.

    python -m experiments.bench_latency

Every network is pruned to 50 % of its MACs in several ways (rounding of the widths; every width, or only the first
convolution of each residual block), exported to int8 and timed with the unpruned file in turn, one inference each.
Realised means: speed-up of the file / ratio of the MACs; 1.0 would be all of it. Weights are random: time does not
depend on them. Writes results/bench/latency.json.
"""

import re
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags

from experiments.runner import write_json

FLAGS = flags.FLAGS
flags.DEFINE_list("models", ["vgg16", "resnet56"], "networks to prune: vgg16, resnet<depth>")
flags.DEFINE_list("round_to", ["1", "8", "16", "32"], "multiples that the kept widths are rounded to")
flags.DEFINE_string("results", "results", "where the record goes")

TARGET = 0.5


def main(_):
    from tfcompress.reporting import environment

    rows = [row for name in FLAGS.models for row in _measure(name)]
    for name in FLAGS.models:
        best = max((row for row in rows if row["model"] == name), key=lambda row: row["realised"])
        print(f"{name}: {best['realised']:.2f} realised with round_to={best['round_to']}, {best['layers']}")
    command = f"python -m experiments.bench_latency --models={','.join(FLAGS.models)}"
    record = {
        "benchmark": "int8 latency, one thread, batch 1, interleaved medians",
        "command": f"{command} --round_to={','.join(FLAGS.round_to)}",
        "environment": environment(threads=1),
        "rows": rows,
    }
    print(f"written: {write_json(Path(FLAGS.results) / 'bench' / 'latency.json', record)}")


def _measure(name):
    import tfcompress as tfc

    model = _network(name)
    choices = {"every width": ()}
    if name.startswith("resnet"):
        choices["first convolution of each block"] = tuple(
            layer.name for layer in model.layers if re.search("^conv1$|_conv2$", layer.name)
        )
    plans = []
    with tempfile.TemporaryDirectory() as folder:
        files = [_export(model, Path(folder) / "whole.tflite")]
        for which, skip in choices.items():
            for round_to in map(int, FLAGS.round_to):
                try:
                    small, plan = tfc.prune_channels(model, "l2", macs_reduction=TARGET, round_to=round_to, skip=skip)
                except ValueError as error:
                    print(f"{name}, {which}, round_to={round_to}: {error}")
                    continue
                plans.append((which, round_to, plan))
                files.append(_export(small, Path(folder) / f"{len(files)}.tflite"))
        whole, *pruned = tfc.benchmark_interleaved(files)
    for (which, round_to, plan), latency in zip(plans, pruned):
        ratio, speedup = plan.before.macs / plan.after.macs, whole.median / latency.median
        row = {
            "model": name,
            "layers": which,
            "round_to": round_to,
            "macs_reduction": round(plan.macs_reduction, 4),
            "latency_ms_before": round(whole.median, 4),
            "latency_ms_after": round(latency.median, 4),
            "speedup": round(speedup, 3),
            "macs_ratio": round(ratio, 3),
            "realised": round(speedup / ratio, 3),
        }
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        yield row


def _network(name):
    from tfcompress import models

    return models.vgg16() if name == "vgg16" else models.resnet(int(name.removeprefix("resnet")))


def _export(model, path):
    import tfcompress as tfc

    calibration = np.random.default_rng(0).random((4, *model.input_shape[1:]), "float32")
    return tfc.export_tflite(model, path, "int8", calibration).path


if __name__ == "__main__":
    app.run(main)
