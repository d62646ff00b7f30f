"""From a Keras classifier to a .tflite file by a recipe, resumable, with everything measured on the way."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import tempfile
import time
import zlib

import numpy as np

from tfcompress.compression.recipe import load_recipe
from tfcompress.files import is_temporary, save_model, write_text
from tfcompress.graph import copy_model, is_channels_first, network_of

SETTLED = "weights.npz"
MEASURED_IMAGES = 5000
PROBES = 512  # held-out images that tell what pruning one layer does
SCALED_IMAGES = 256  # that show which scaling of pixels a model takes


@dataclasses.dataclass(frozen=True)
class Compressed:
    """What `compress` returns.

    Attributes:
        model: the float Keras model before quantization, pruned and trained.
        file: the `TFLiteFile`.
        top1: accuracy of the file in [0, 1]: over the test images, without any over the validation images.
        summary: what `model.json` holds.
        folder: the output folder.
    """

    model: object
    file: object
    top1: float
    summary: dict = dataclasses.field(repr=False)
    folder: pathlib.Path

    def __str__(self):
        first, last = self.summary["steps"][0], self.summary["file"]
        size, speed = first["bytes"] / last["bytes"], first["latency_ms"] / last["latency_ms"]
        return (
            f"{self.file.path}: {max(size, 1 / size):.1f} times {'smaller' if size >= 1 else 'larger'}, "
            f"{max(speed, 1 / speed):.1f} times {'faster' if speed >= 1 else 'slower'} than the float32 file, "
            f"top-1 {last['top1']:.2%} on {last['top1_of']} images (before {last['top1_before']:.2%})"
        )


def compress(
    model,
    data,
    recipe="small",
    workdir="compressed",
    *,
    augmentation=None,
    bfloat16=False,
    source=None,
    command=None,
):
    """Compresses a classifier and writes all that an app and its developer need into a folder.

    The same call with the same folder goes on where an interrupted one stopped; a finished one is read back.

    Args:
        model: a functional or Sequential Keras 3 classifier with one image input, trained. It is not changed. A final
            softmax is removed while it trains, and put back. Frozen layers are trained, too, layers of augmentation
            are left out, and one number for two classes becomes two (`as_logits`).
        data: `tfcompress.datasets.UserData`, or (x, y): arrays of images as the model takes them, or uint8 pixels for a
            model that takes pixels / 255, and integer labels. A tenth of them is then held out.
        recipe: small, fast or safe; the path of a YAML file; or a list of steps, `[{"prune": {"ratio": 0.5}}, ...]`.
        workdir: the output folder: `model.tflite`, `model.keras` (the float model), `labels.txt`, `model.json`,
            `report.html`, `plan.json` of all prunings together, and in `steps/` each step's own and its checkpoints.
        augmentation: {"crop_padding": 4, "flip": True, ...}, options of `TrainingConfig` for all training steps: what
            the model was trained with. On images of a kind that it never saw, it would teach nonsense.
        bfloat16: whether the fine-tuning computes in bfloat16, with float32 weights: faster on a processor that has it
            (Intel AMX, AMD since Zen 4, most GPUs).
        source: path of the model's file, for the provenance.
        command: command line that repeats this, for the provenance.

    Returns:
        A `Compressed`.

    Raises:
        RecipeError: a recipe that cannot be carried out.
        ValueError: a model that is no such classifier, images whose pixels it takes in another range, a reduction that
            cannot be reached, or a folder that holds another run.
        UnsupportedLayerError: a layer that surgery does not know or that cannot be quantized.
        FloatingPointError: a training diverged.
        OSError: the recipe cannot be read, or the folder cannot be written.

    Example:

    ```python
    import tfcompress as tfc

    model = keras.models.load_model("classifier.keras")
    small = tfc.compress(model, (images, labels), recipe="small", workdir="small")
    print(small)
    ```
    """
    from tfcompress.outputs import trainable_logits

    recipe = load_recipe(recipe).adapted(augmentation, bfloat16)
    original, had_softmax = trainable_logits(model)
    data = _as_user_data(data, original)
    # What cannot be done is found before anything is trained.
    plan(original, recipe)
    folder = pathlib.Path(workdir)
    identity = {**_identity(original, data, recipe), "softmax": had_softmax}
    if not _is_claimed(folder, identity):
        if message := better_scaling(original, data):
            raise ValueError(message)
        _check_export(original, data, recipe)
        _claim(folder, identity)
    run = _Run(original, data, folder, had_softmax)
    run.measure("original", "original (float32)", original, 0.0)
    for number, step in enumerate(recipe.steps, 1):
        run.step(f"{number}-{step.kind}", step)
    return _publish(run, recipe, source, command)


def plan(model, recipe):
    """The plans of a recipe's steps that make a model smaller, one after the other, without training: for a dry run.

    Where a step's scope is the sensitivity of the layers, nothing is measured: its reduction is spread evenly.

    Args:
        model: the Keras model.
        recipe: a `Recipe`.

    Returns:
        List of `PruningPlan` and `LowRankPlan`.
    """
    from tfcompress import factorize, prune_channels
    from tfcompress.quantization.weight_sharing import shareable

    shrinking = {"prune": prune_channels, "factorize": factorize}
    plans, whole = [], None
    for step in recipe.steps:
        try:
            if step.kind in shrinking:
                options = dict(step.options)
                if options.get("scope") == "sensitivity":
                    options["scope"] = "layer"
                model, made = shrinking[step.kind](model, **options)
                plans.append(made)
            if step.kind == "prune":
                # Not of a grouped convolution that the first pruning has left with one channel for each group.
                whole = whole.then(made) if whole else made
            elif step.kind == "share":
                shareable(model, step.options.get("skip", ()))
        except ValueError as error:
            raise ValueError(f"{step.place}: {error}") from error
    return plans


def input_range(data):
    """(smallest, largest) value of the input of a `UserData`, and 0, which int8 ranges hold.

    It is fixed by the scaling of pixels, or found in the data.
    """
    from tfcompress.datasets import SCALINGS

    if data.scaling == "none":
        return min(0.0, float(data.train[0].min())), max(0.0, float(data.train[0].max()))
    scale, offset, _ = SCALINGS[data.scaling]
    return offset, round(255 * scale, 6) + offset


def better_scaling(model, data):
    """Says that a model recognizes far more images with another scaling of their pixels than with that of the data.

    A model that gets pixels in the wrong range still computes something, and all that follows is wasted.

    Args:
        model: the Keras model.
        data: a `UserData`.

    Returns:
        The message; None where the scaling is right, or no other one is better, or values are no pixels.
    """
    from tfcompress.datasets import SCALINGS
    from tfcompress.datasets.arrays import as_float, sample
    from tfcompress.training import accuracy

    x, y = sample(SCALED_IMAGES, *(data.validation or data.train))
    x = as_float(x)
    scale, offset, _ = SCALINGS[data.scaling]
    pixels = (x - np.float32(offset)) / np.float32(scale)
    if pixels.min() < -0.5 or pixels.max() > 255.5:
        return None
    others = {name: values for name, values in SCALINGS.items() if name not in (data.scaling, "none")}
    found = {name: accuracy(model, pixels * np.float32(a) + np.float32(b), y) for name, (a, b, _) in others.items()}
    best, own = max(found, key=found.get), accuracy(model, x, y)
    if found[best] < own + 0.2 + len(y) ** -0.5:  # so much may be chance
        return None
    given, better = (f"scaling {name!r} ({SCALINGS[name][2]})" for name in (data.scaling, best))
    return (
        f"The model recognizes {own:.0%} of {len(y)} images with {given}, and {found[best]:.0%} with {better}. "
        f"Give --scaling {best}; in Python, load_user_data(..., scaling={best!r}), or floats as the model takes them"
    )


def calibration_images(data, count=500):
    """Training images of a `UserData`, drawn at random, as floats that span the whole range of the input."""
    from tfcompress.datasets.arrays import as_float, sample

    images = as_float(*sample(count, data.train[0]))
    # Two values of one image fix the input's range; an all-white image would widen the range of every later tensor.
    images[0].flat[:2] = input_range(data)
    return images


def _check_export(model, data, recipe):
    """Converts the model as it is, as the recipe will at its end: what the file's precision cannot do is found now."""
    from tfcompress import export_tflite
    from tfcompress.quantization.aware_training import calibrate, quantize_wrap
    from tfcompress.tflite.export import RequantizationError

    if None in model.inputs[0].shape[1:]:
        raise ValueError(
            f"Every dimension of the input must be fixed. Received: input shape {tuple(model.inputs[0].shape[1:])}. "
            "Build the model for one size."
        )
    images = calibration_images(data, 32)
    if any(step.kind == "qat" for step in recipe.steps):
        model = quantize_wrap(model, input_range=input_range(data))
        calibrate(model, images)
    # The weights are other ones at the end.
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(RequantizationError):
        precision = recipe.steps[-1].options.get("precision", "int8")
        export_tflite(model, pathlib.Path(folder) / "model.tflite", precision, images)


class _Run:
    """The network on its way through the steps."""

    def __init__(self, original, data, folder, had_softmax):
        self.original, self.data, self.folder, self.had_softmax = original, data, folder, had_softmax
        self.network = original  # the Keras 3 network
        self.trained = original  # what is exported: the network, or a tf_keras model made of it
        self.plan = None
        self.rows = []
        self.file = None

    def step(self, name, step):
        from tfcompress.training.fit import history_seconds

        print(f"\n== {name}", flush=True)
        directory = self.folder / "steps" / name
        directory.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        title = getattr(self, f"_{step.kind}")(step, directory)
        if step.kind == "export":
            return
        # TF-MOT's fake quantization is measured as the file that the export will write.
        # Of a training that was interrupted, the epochs before count, too.
        trained = sum(history_seconds(path) for path in directory.glob("history.csv"))
        self.measure(name, title, self.trained, max(trained, time.perf_counter() - start))

    def _prune(self, step, directory):
        from tfcompress import PruningPlan, apply_plan, prune_channels

        wider, path = self.network, directory / "plan.json"
        if (directory / SETTLED).exists():
            plan = _read(path, PruningPlan.from_json)
            self.network = apply_plan(wider, plan)
        else:
            options = dict(step.options)
            if options.get("scope") == "sensitivity":
                options["scope"] = self._sensitivity(step, directory / "sensitivity.json")
            self.network, plan = prune_channels(wider, **options)
            write_text(path, plan.to_json())
        _lower_dropout(self.network, wider)
        self.plan = plan if self.plan is None else self.plan.then(plan)
        self._settle(plan, directory)
        return f"pruned by {plan.criterion}"

    def _sensitivity(self, step, path):
        """What pruning each layer does, measured on held-out images and kept in a file."""
        from tfcompress import Sensitivity, sensitivity
        from tfcompress.datasets.arrays import as_float, sample

        if path.exists():
            return _read(path, Sensitivity.from_json)
        x, y = sample(PROBES, *self.data.validation)
        arguments = {name: step.options[name] for name in ("criterion", "skip") if name in step.options}
        measured = sensitivity(self.network, as_float(x), y, verbose=True, **arguments)
        write_text(path, measured.to_json())
        return measured

    def _factorize(self, step, directory):
        from tfcompress import factorize

        self.network, plan = factorize(self.network, **step.options)
        self._settle(plan, directory)
        write_text(directory / "ranks.txt", f"{plan}\n")
        return "factorized"

    def _settle(self, plan, directory):
        """Measures the statistics of a smaller network anew, and prints what it has saved.

        The weights are kept: another processor would find almost the same ones, from which no training is resumed.
        """
        from tfcompress import recalibrate
        from tfcompress.training.checkpoint import load_checkpoint, save_checkpoint

        self.trained = self.network
        if stored := load_checkpoint(directory / SETTLED):
            self.network.set_weights(stored[0])
        else:
            recalibrate(self.network, calibration_images(self.data, 1024), batch_size=128)
            save_checkpoint(directory / SETTLED, self.network.get_weights(), {})
        print(f"   {plan.params_reduction:.1%} of the parameters, {_percent(plan.macs_reduction)} of the MACs removed")

    def _finetune(self, step, directory):
        from tfcompress.training import fit

        if self.network is self.original:  # which stays as it came, to teach
            self.network = self.trained = copy_model(self.original)
        fit(
            self.network,
            *self.data.train,
            step.training(),
            **self._watched(step, directory),
        )
        return "fine-tuned"

    def _sparsify(self, step, directory):
        from tfcompress import sparsify

        self.network = self.trained = sparsify(
            self.network,
            step.options["sparsity"],
            *self.data.train,
            step.training(),
            allocation=step.options.get("allocation", "lamp"),
            **self._watched(step, directory),
        )
        return f"{step.options['sparsity']:.0%} sparse"

    def _share(self, step, directory):
        from tfcompress import share_weights

        self.network = self.trained = share_weights(
            self.network,
            step.options["clusters"],
            *self.data.train,
            step.training(),
            skip=step.options.get("skip", ()),
            **self._watched(step, directory),
        )
        return f"{step.options['clusters']} values per layer"

    def _qat(self, step, directory):
        from tfcompress import quantization_aware_training

        self.trained = quantization_aware_training(
            self.trained,
            *self.data.train,
            step.training(),
            preserve_sparsity=step.options.get("preserve_sparsity", False),
            preserve_sharing=step.options.get("preserve_sharing", False),
            input_range=input_range(self.data),
            **self._watched(step, directory),
        )
        return "int8, trained (QAT)"

    def _export(self, step, directory):
        precision = step.options.get("precision", "int8")
        self.file = self.convert(self.trained, self.folder / "model.tflite", precision)
        if self.rows[-1]["precision"] != precision:
            self.measure(directory.name, f"{precision} after training", self.trained, 0.0, precision)

    def _watched(self, step, directory):
        """What all trainings have in common: teacher, held-out images and the folder of checkpoints."""
        teacher = self.original if step.options.get("distill") else None
        return {"teacher": teacher, "validation": self.data.validation, "directory": directory}

    def convert(self, model, path, precision):
        from tfcompress import export_tflite

        return export_tflite(model, path, precision, calibration_images(self.data), softmax=self.had_softmax)

    def measure(self, name, title, model, seconds, precision=None):
        """Adds a row: accuracy on validation images, size and latency of the step's file; kept beside the file."""
        from tfcompress import benchmark_tflite, evaluate_tflite, profile
        from tfcompress.datasets.arrays import sample
        from tfcompress.tflite.export import is_quantization_aware

        directory = self.folder / "steps" / name
        stored = directory / "measured.json"
        if stored.exists():
            row = _read(stored, json.loads)
        else:
            directory.mkdir(parents=True, exist_ok=True)
            precision = precision or ("int8" if is_quantization_aware(model) else "float32")
            file = self.convert(model, directory / "model.tflite", precision)
            x, y = sample(MEASURED_IMAGES, *self.data.validation)
            cost = profile(self.network)
            row = {
                "name": name,
                "title": title,
                "precision": precision,
                "top1": evaluate_tflite(file.path, x, y),
                "params": cost.params,
                "macs": cost.macs,
                "bytes": file.bytes,
                "gzip_bytes": file.gzip_bytes,
                "latency_ms": benchmark_tflite(file.path).median,
                "seconds": round(seconds, 1),
            }
            write_text(stored, json.dumps(row))
        self.rows.append(row)
        print(f"   {title}: {row['bytes']:,} bytes, {row['top1']:.2%}, {row['latency_ms']:.3f} ms", flush=True)


def _lower_dropout(network, wider):
    """Fewer channels need less dropout: rate * sqrt(channels after / before) (Han et al. 2015, equation 3)."""
    import keras

    for layer, before in zip(network._flatten_layers(), wider._flatten_layers(), strict=True):
        if isinstance(layer, keras.layers.Dropout) and layer._inbound_nodes:
            layer.rate *= (layer.output.shape[-1] / before.output.shape[-1]) ** 0.5


def _publish(run, recipe, source, command):
    """Writes the output folder's files."""
    from tfcompress import __version__, benchmark_interleaved, evaluate_tflite, profile
    from tfcompress.compression.report import VERSION, write_report
    from tfcompress.outputs import with_softmax
    from tfcompress.reporting import environment

    folder, data = run.folder, run.data
    which = "test" if data.test else "validation"
    measured = data.test or data.validation
    first = folder / "steps" / "original" / "model.tflite"
    before, after = benchmark_interleaved([first, run.file.path])
    run.rows[0]["latency_ms"], run.rows[-1]["latency_ms"] = before.median, after.median
    network = with_softmax(run.network) if run.had_softmax else run.network
    save_model(network, folder / "model.keras")
    write_text(folder / "labels.txt", "".join(f"{name}\n" for name in data.class_names))
    if run.plan:
        write_text(folder / "plan.json", run.plan.to_json())
    summary = {
        "version": VERSION,
        "tfcompress": __version__,
        "name": run.original.name,
        "command": command,
        "recipe": {"name": recipe.name, "steps": recipe.as_data()},
        "source": {"file": pathlib.Path(source).name, "sha256": _sha256(source)} if source else None,
        "data": {
            "source": data.source,
            "train": len(data.train[0]),
            "validation": len(data.validation[0]),
            "test": len(data.test[0]) if data.test else None,
        },
        **_interface(run.file.path, data.scaling, run.had_softmax),
        "class_names": list(data.class_names),
        "file": {
            "name": run.file.path.name,
            "precision": run.file.precision,
            "bytes": run.file.bytes,
            "gzip_bytes": run.file.gzip_bytes,
            "top1": evaluate_tflite(run.file.path, *measured),
            "top1_before": evaluate_tflite(first, *measured),
            "top1_of": which,
            "latency_ms": after.median,
        },
        "steps": run.rows,
        "layers": _layers(run.original, profile(run.original), profile(run.network)),
        "environment": environment(),
    }
    write_text(folder / "model.json", json.dumps(summary, indent=1) + "\n")
    write_report(folder)
    return Compressed(network, run.file, summary["file"]["top1"], summary, folder)


def _interface(path, scaling, softmax):
    from tfcompress.tflite.evaluate import open_interpreter

    interpreter = open_interpreter(path, threads=1)
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def describe(details):
        scale, zero_point = details["quantization"]
        return {
            "name": details["name"],
            "shape": [int(size) for size in details["shape"][1:]],
            "dtype": np.dtype(details["dtype"]).name,
            "scale": float(scale),
            "zero_point": int(zero_point),
        }

    return {"input": {**describe(source), "scaling": scaling}, "output": {**describe(target), "softmax": softmax}}


def _layers(model, before, after):
    """One row per layer with weights of the original; the second of two thin layers has its name, too."""

    first = {layer.name for layer in model._flatten_layers() if is_channels_first(layer)}

    def axis(name):
        return 1 if name in first else -1

    names = {layer.name for layer in before.layers}
    parts = {}
    for layer in after.layers:
        name = layer.name if layer.name in names else layer.name.rstrip("_").removesuffix("_low_rank")
        parts.setdefault(name, []).append(layer)
    return [
        {
            "name": layer.name,
            "kind": layer.kind,
            "channels_before": int(layer.output_shape[axis(layer.name)]),
            "channels_after": int(parts[layer.name][-1].output_shape[axis(layer.name)]),
            "params_before": layer.params,
            "params_after": sum(part.params for part in parts[layer.name]),
            "macs_before": layer.macs,
            "macs_after": sum(part.macs for part in parts[layer.name]),
        }
        for layer in before.layers
        if layer.macs
    ]


def _as_user_data(data, model):
    from tfcompress.datasets import UserData
    from tfcompress.datasets.arrays import as_classes
    from tfcompress.datasets.user import hold_out
    from tfcompress.training.fit import check_data

    if isinstance(data, UserData):
        if not data.validation:
            raise ValueError("data need validation images, to compare the steps on: load_user_data(..., held_out=0.1)")
        return data
    if not isinstance(data, tuple | list) or len(data) != 2:
        received = f"{type(data).__name__}" + (f" of {len(data)}" if isinstance(data, tuple | list) else "")
        raise ValueError(
            "data must be (images, labels), two arrays, or what tfcompress.datasets.load_user_data returns, which has "
            f"validation and test images of their own, too. Received: {received}"
        )
    x, y = np.asarray(data[0]), as_classes(data[1])
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"images must be uint8 pixels, or floats as the model takes them. Received: {x.dtype}")
    names = tuple(str(i) for i in range(check_data(model, x, y)))
    train, validation = hold_out("data", x, y, max(1, len(x) // 10))
    scaling = "0-1" if x.dtype == np.uint8 or (x.min() >= 0 and x.max() <= 1) else "none"
    return UserData(train, validation, None, names, scaling, "arrays")


def _identity(model, data, recipe):
    weights = hashlib.sha256(b"".join(np.ascontiguousarray(w).tobytes() for w in model.get_weights())).hexdigest()
    parts = {"train": data.train, "validation": data.validation}
    crc = {name: [zlib.crc32(np.ascontiguousarray(array)) for array in arrays] for name, arrays in parts.items()}
    return {
        "recipe": recipe.as_data(),
        "weights": weights[:16],
        "network": network_of(model),
        "data": crc,
        "scaling": data.scaling,
    }


def _is_claimed(folder, identity):
    """Whether the folder is this run's already; refuses one that is another's."""
    stored = folder / "steps" / "run.json"
    if stored.exists():
        found, identity = _read(stored, json.loads, folder), json.loads(json.dumps(identity))
        different = [key for key in identity if found.get(key, identity[key]) != identity[key]]
        if different:
            raise ValueError(
                f"{folder} holds another run (another {' and another '.join(different)}). "
                "Choose another output folder, or delete this one."
            )
        return True
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"The output must be a folder. Received: {folder}, a file.")
    if any(path.is_file() and not is_temporary(path) for path in folder.rglob("*")):
        raise ValueError(f"{folder} is not empty and no run of tfcompress. Choose another output folder.")
    return False


def _claim(folder, identity):
    """Marks the folder as this run's, unless another one has since."""
    if _is_claimed(folder, identity):
        return
    stored = folder / "steps" / "run.json"
    stored.parent.mkdir(parents=True, exist_ok=True)
    write_text(stored, json.dumps(identity))


def _read(path, parse, delete=None):
    """What a text file of a run holds; where it is damaged, the error says which path to delete."""
    try:
        return parse(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete {delete or path} to compute it again") from error


def _percent(fraction):
    return "?" if fraction is None else f"{fraction:.1%}"


def _sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
