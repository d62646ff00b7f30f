"""How much of a cut in MACs becomes speed: int8 files on one thread, before and after removing half of the MACs.

    python -m experiments.bench_latency

Every network is pruned to 50 % of its MACs in several ways: rounding of the widths, every width or only the first
convolution of each residual block, all layers or only those at lower resolutions. The files are exported to int8 and
timed with the unpruned one in turn, one inference each. Realised means: speed-up of the file / ratio of the MACs; 1.0
would be all of it. Weights are random: time does not depend on them.

A CPU with matrix units (AMX) computes 64 channels of a convolution in the time of 16, so small networks gain nothing
there from fewer channels. No phone's kernels do that: the files are timed without them, as
`tfc.benchmark_interleaved` does unless told otherwise, and once more with them. Writes results/bench/latency.json.
"""

import itertools
import re
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags

from experiments.resnet import streams
from experiments.runner import write_json

FLAGS = flags.FLAGS
flags.DEFINE_list("models", ["vgg16", "resnet56"], "networks to prune: vgg16, resnet<depth>")
flags.DEFINE_list("round_to", ["4", "8", "16", "32", "64"], "multiples that the kept widths are rounded to")
flags.DEFINE_string("results", "results", "where the record goes")

TARGET = 0.5
# Ratios for half of ResNet56's MACs, found by timing its convolutions one by one without AMX, at multiples of 8: time
# follows the pixels more than the channels, so the 32x32 stage gives back least for what is removed there.
BY_TIME = {
    "resnet56": {
        "stage2_block._conv1": 0.5,
        "stage3_block[1-5]_conv1": 0.75,
        "stage3_block[6-9]_conv1": 0.875,
        "stage2_block1_conv2": 0.5,
        "stage3_block1_conv2": 0.75,
    }
}
# Largest height of the feature maps whose layers are pruned.
RESOLUTIONS = (32, 16, 8)


def main(_):
    from tfcompress.reporting import environment

    rows = [row for name in FLAGS.models for row in _measure(name)]
    for name, amx in itertools.product(FLAGS.models, sorted({row["amx"] for row in rows})):
        best = max((row for row in rows if (row["model"], row["amx"]) == (name, amx)), key=lambda row: row["realised"])
        where = f"{best['layers']}, up to {best['resolution']}x{best['resolution']}, round_to={best['round_to']}"
        print(f"{name}, {'with' if amx else 'without'} AMX: {best['realised']:.2f} realised: {where}")
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
    choices = [
        (layers, resolution, int(round_to), {"macs_reduction": TARGET})
        for layers in (("every width", "first convolutions") if name.startswith("resnet") else ("every width",))
        for resolution in RESOLUTIONS
        for round_to in FLAGS.round_to
    ]
    if name in BY_TIME:
        choices.append(("ratios by measured time", 16, 8, {"ratios": _ratios(model, BY_TIME[name])}))
    planned = {}
    for layers, resolution, round_to, budget in choices:
        skip = _skip(model, layers, resolution)
        try:
            plan = tfc.plan_pruning(model, "l2", round_to=round_to, skip=skip, **budget)
        except ValueError as error:
            print(f"{name}, {layers}, {resolution}, round_to={round_to}: {error}")
            continue
        # Another choice may lead to the same widths: they are not timed twice.
        widths = tuple(len(kept) for kept in plan.kept.values())
        planned.setdefault(widths, ((layers, resolution, round_to), plan))
    planned = list(planned.values())
    with tempfile.TemporaryDirectory() as folder:
        files = [_export(model, Path(folder) / "whole.tflite")]
        for _, plan in planned:
            files.append(_export(tfc.apply_plan(model, plan), Path(folder) / f"{len(files)}.tflite"))
            print(f"{name}: {len(files) - 1} of {len(planned)} pruned files exported", flush=True)
        timings = {amx: tfc.benchmark_interleaved(files, amx=amx) for amx in (False, True)}
    rows = []
    for amx, (whole, *pruned) in timings.items():
        for ((layers, resolution, round_to), plan), latency in zip(planned, pruned):
            ratio, speedup = plan.before.macs / plan.after.macs, whole.median / latency.median
            rows.append(
                {
                    "model": name,
                    "amx": amx,
                    "layers": layers,
                    "resolution": resolution,
                    "round_to": round_to,
                    "macs_reduction": round(plan.macs_reduction, 4),
                    "latency_ms_before": round(whole.median, 4),
                    "latency_ms_after": round(latency.median, 4),
                    "speedup": round(speedup, 3),
                    "macs_ratio": round(ratio, 3),
                    "realised": round(speedup / ratio, 3),
                }
            )
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def _network(name):
    from tfcompress import models

    return models.vgg16() if name == "vgg16" else models.resnet(int(name.removeprefix("resnet")))


def _skip(model, layers, resolution):
    """The convolutions that are kept whole."""
    from tfcompress import profile

    high = {
        row.name for row in profile(model).layers if len(row.output_shape) == 4 and row.output_shape[1] > resolution
    }
    skip = high | set(streams(model)) if layers == "first convolutions" else high
    convolutions = [layer.name for layer in model.layers if type(layer).__name__ == "Conv2D"]
    return tuple(name for name in convolutions if name in skip)


def _ratios(model, patterns):
    return {
        layer.name: ratio
        for pattern, ratio in patterns.items()
        for layer in model.layers
        if re.fullmatch(pattern, layer.name)
    }


def _export(model, path):
    import tfcompress as tfc

    calibration = np.random.default_rng(0).random((1, *model.input_shape[1:]), "float32")
    return tfc.export_tflite(model, path, "int8", calibration).path


if __name__ == "__main__":
    app.run(main)
