"""MobileNet v1: magnitude pruning, then quantization-aware training (Sun & Ye 2020), and channel pruning beside it.

Paper: Computer Science 47(8):261-266, doi 10.11896/jsjkx.190700062: MobileNet from 16.9 M to 3.1 M, a drop of 3 pt.
Reconstructed from the abstract: weights are pruned by magnitude with the ramp of Zhu & Gupta 2017, then trained with
quantization (Jacob et al. 2018) that keeps the zeros. Beyond the paper: channels are removed, which makes the file
itself small and fast. Both routes start from one float network, which also teaches them, and train equally long.

    python -m experiments.mobilenet --profile=full --seed=0
    python -m experiments.mobilenet --profile=full --setting=imagenet

The first trains on CIFAR-10: --model=mobilenet without the first stride of the paper's network (46.4 M MACs), or
mobilenet-4x4 without the first two (175.6 M). Without CIFAR-10 the same steps run on scikit-learn's digits.

The second is the paper's network, 224x224 and 1,000 classes, with random weights and one epoch on random images: sizes
and latencies only, as experiment "mobilenet-sizes". With --imagenet_weights (a file of `keras.applications.MobileNet`)
and --imagenet_dir (folders train and validation, or one folder for each of the weights' classes, half of whose images
then measure) the same command fine-tunes those weights and measures top-1 and top-5, as "mobilenet-imagenet". The
images are held in memory, in training as floats: 150 and 600 KB each.

A variant is int8-qat for the float network itself, sparse<percent>, or criterion-params<percent>,
criterion-macs<percent> or criterion-params<percent>-macs<percent> (l2-params72) for channels removed by a criterion of
`tfcompress.criteria` (but taylor), at the same ratio everywhere or, where both are given, at one that changes with
depth. Every variant ends as an int8 file. How far each layer of it is from the float network, in dB, stands in
signal_to_noise.csv beside the record. With --variants only those are trained, and added to what the record of the same
configuration holds.
"""

import csv
import dataclasses
import functools
import re
from pathlib import Path

import numpy as np

from experiments import filters, measure, runner
from experiments.runner import Split, check_at_least, held_out_of, load_split, option

# Strides removed from the paper's network.
MODELS = {"mobilenet": {"stem_strides": 1}, "mobilenet-4x4": {"stem_strides": 1, "block2_strides": 1}}
SPARSE = ("sparse30", "sparse50", "sparse70", "sparse80", "sparse90")
# 81 % and 92 % less than the float file, raw, and beyond; with the ImageNet head, 3.1 MB.
VARIANTS = {
    "cifar10": ("int8-qat", *SPARSE, "l2-params28", "l2-params72", "l2-params71-macs60", "l2-params71-macs64"),
    "imagenet": ("int8-qat", *SPARSE, "l2-params30"),
}
RANDOM_IMAGES = 48
SIGNAL_TO_NOISE = "signal_to_noise.csv"
# Options that the other setting, and sizes alone, have no use for.
CIFAR_ONLY = ("model", "dataset", *(name for name in vars(filters.Training) if "baseline" in name))
TRAINING = ("train_images", "held_out", "finetune_epochs", "qat_epochs")
# A training on fewer leaves BatchNorm's moving statistics where they began, far from the network's.
FEW_IMAGES = 20_000


@dataclasses.dataclass(frozen=True)
class Config(filters.Training):
    """Configuration whose variants are checked before anything runs."""

    model: str = option("mobilenet", "mobilenet (the last of its images are 2x2) or mobilenet-4x4")
    setting: str = option("cifar10", "cifar10, or imagenet: 224x224 pixels, see the module's help")
    alpha: float = option(1.0, "width of the network")
    round_to: int = option(8, "channels that are kept come in multiples of this")
    imagenet_weights: str = option("", "file of weights of keras.applications.MobileNet")
    imagenet_dir: str = option("", "folder of images, with one folder for each class")

    def __post_init__(self):
        super().__post_init__()
        check_at_least(1, self, "round_to")
        if self.model not in MODELS:
            raise ValueError(f"model must be one of {', '.join(MODELS)}. Received: {self.model!r}")
        if self.setting not in VARIANTS:
            raise ValueError(f"setting must be one of {', '.join(VARIANTS)}. Received: {self.setting!r}")
        if bool(self.imagenet_weights) != bool(self.imagenet_dir):
            raise ValueError("imagenet_weights and imagenet_dir are of use together only. Received: one of them")
        if self.imagenet_dir and self.setting != "imagenet":
            raise ValueError(f"imagenet_dir needs setting 'imagenet'. Received: {self.setting!r}")
        for path in filter(None, (self.imagenet_weights, self.imagenet_dir)):
            if not Path(path).exists():
                raise ValueError(f"{path} does not exist: give a file of weights and a folder of images")
        for name in self.variants:
            parse(name)


def parse(name):
    """Reads the name of a variant.

    Args:
        name: as in "int8-qat", "sparse70" or "l2-params50".

    Returns:
        The criterion, None for sparsity, and a budget: {"sparsity", or "params_reduction", "macs_reduction" or both:
        fraction}; neither for int8-qat.

    Raises:
        ValueError: for one that is not written so, or an unknown criterion.
    """
    from tfcompress import criteria

    if name == "int8-qat":
        return None, {}
    percent = filters.PERCENT
    match = re.fullmatch(rf"sparse({percent})|(\w+)(?=-)((?:-params{percent})?(?:-macs{percent})?)", name)
    if not match:
        raise ValueError(
            f"a variant is written int8-qat, sparse<percent>, or criterion-params<percent>, criterion-macs<percent> or "
            f"criterion-params<percent>-macs<percent> (l2-params72), percents from 01 to 99. Received: {name!r}"
        )
    sparse, criterion, removed = match.groups()
    if sparse:
        return None, {"sparsity": int(sparse) / 100}
    reductions = re.findall(r"-([a-z]+)(\d\d)", removed)
    return criteria.get(criterion), {f"{what}_reduction": int(percent) / 100 for what, percent in reductions}


PROFILES = {
    "smoke": Config(
        dataset="digits",
        alpha=0.25,
        train_images=256,
        baseline_epochs=1,
        finetune_epochs=1,
        qat_epochs=1,
        variants=("int8-qat", "sparse50", "l2-params50"),
    ),
    "quick": Config(
        train_images=10000,
        baseline_epochs=12,
        finetune_epochs=4,
        qat_epochs=1,
        variants=("int8-qat", "sparse50", "sparse90", "l2-params72"),
    ),
    "full": Config(),
}


def run(task):
    """Runs all stages; every one resumes where it was interrupted."""
    if task.config.setting == "imagenet":
        _refuse(task, "has a network and data of its own", CIFAR_ONLY)
        if not task.config.imagenet_dir:
            _refuse(task, "has nothing to train on without imagenet_dir", TRAINING)
    if task.config.setting == "cifar10":
        _run_cifar(task)
    elif task.config.imagenet_dir:
        _run_imagenet(task)
    else:
        _run_sizes(task)
    task.close()


def _refuse(task, why, names):
    """Ends the program where flags gave options that have no effect."""
    if given := [name for name in names if name in task.given]:
        raise SystemExit(f"setting {task.config.setting!r} {why}: {', '.join(given)} would do nothing")


def _run_cifar(task):
    from tfcompress import recalibrate
    from tfcompress.models import mobilenet

    config = task.config
    dataset, split = load_split(task, config.dataset, config.held_out, config.train_images, rgb=True)
    task.experiment = config.model if dataset == "cifar10" else f"{config.model}-{dataset}"
    classes = int(split.train[1].max()) + 1

    def build():
        return mobilenet(alpha=config.alpha, classes=classes, **MODELS[config.model])

    unpruned = filters.baseline(task, build, split)
    if task.config.baseline_epochs * len(split.train[0]) < FEW_IMAGES:
        recalibrate(unpruned, split.train[0] / np.float32(255), batch_size=128)
    so_far = functools.partial(measure.record_so_far, task, dataset, split, select=select)
    variants = compress(task, unpruned, split, so_far)
    measure.record(task, dataset, split, variants, select)


def _run_imagenet(task):
    from tfcompress.datasets import load_user_data, split_validation
    from tfcompress.training.checkpoint import digest

    config, shape = task.config, (224, 224, 3)
    task.experiment = "mobilenet-imagenet"
    data = load_user_data(config.imagenet_dir, input_shape=shape, held_out=0.5)
    # A folder is read class by class, and the first images are taken for all of them: to calibrate, say.
    order = np.random.default_rng(0).permutation(len(data.train[0]))
    images, labels = (array[order] for array in data.train)
    train, validation = split_validation(images, labels, held_out_of(task, len(images), config.held_out))
    if config.train_images:
        train = tuple(array[: config.train_images] for array in train)
    split = Split(train, validation, data.test or data.validation)
    network = pretrained(config.imagenet_weights, config.alpha, len(data.class_names))
    # And of another folder: what its images say is another record.
    task.baseline = digest([*network.get_weights(), *split.test])[:16]
    so_far = functools.partial(measure.record_so_far, task, "imagenet", split, select=select, top5=True)
    variants = compress(task, network, split, so_far)
    measure.record(task, "imagenet", split, variants, select, top5=True)


def _run_sizes(task):
    """All that training has to do here is to bring the ranges and the zeros about."""
    import keras

    from tfcompress import recalibrate

    task.experiment = "mobilenet-sizes"
    task.config = dataclasses.replace(task.config, finetune_epochs=1, qat_epochs=1)
    keras.utils.set_random_seed(task.seed)
    rng = np.random.default_rng(task.seed)
    images = rng.integers(0, 256, (RANDOM_IMAGES, 224, 224, 3), dtype=np.uint8), rng.integers(0, 1000, RANDOM_IMAGES)
    network = _imagenet_network(task.config.alpha, 1000)
    recalibrate(network, images[0] / np.float32(255), batch_size=16)
    variants = compress(task, network, Split(images, None, None))
    measure.record(task, "none", None, variants, lambda rows: None)


def pretrained(path, alpha, classes):
    """The paper's network with the weights of `keras.applications.MobileNet`; it takes pixels / 255, not [-1, 1].

    Args:
        path: file of weights, as `keras.applications.MobileNet(weights=path)` takes it.
        alpha: width multiplier.
        classes: number of classes of the weights.

    Returns:
        A Keras model that returns logits.
    """
    import keras

    source = keras.applications.MobileNet((224, 224, 3), alpha, weights=path, classes=classes)
    model = _imagenet_network(alpha, classes)
    # The last layer is a 1x1 convolution there.
    model.set_weights([w.reshape(v.shape) for w, v in zip(source.get_weights(), model.weights, strict=True)])
    return model


def _imagenet_network(alpha, classes):
    from tfcompress.models import mobilenet

    return mobilenet((224, 224, 3), alpha, classes, stem_strides=2, rescaling=True)


def compress(task, unpruned, split, so_far=lambda variants: None):
    """Exports the float network and its int8 files: after training, quantization-aware, and behind every variant.

    Args:
        task: the `Run`.
        unpruned: the float network, which also teaches every other one.
        split: the `Split`.
        so_far: function that is called with the list before every long stage but the first.

    Returns:
        List of `Variant`.
    """
    config = task.config
    noise = _SignalToNoise(task, split)
    quantizing = _adapted(task, filters.quantizing(task))
    variants = [
        measure.export(task, "float32", unpruned, unpruned, "float32"),
        measure.export(task, "int8-ptq", unpruned, unpruned, "int8", split),
    ]
    noise.write(variants[-1], unpruned)
    for name in config.variants or VARIANTS[config.setting]:
        so_far(variants)
        criterion, budget = parse(name)
        sparse = "sparsity" in budget
        if not budget:
            name, network = "float32", unpruned
        elif sparse:
            network = _sparsify(task, name, unpruned, split, **budget)
        else:
            training = _adapted(task, filters.finetuning(task))
            network, _ = filters.prune_and_finetune(
                task, name, unpruned, split, criterion, training=training, round_to=config.round_to, **budget
            )
        variants.append(filters.quantize(task, name, network, unpruned, split, quantizing, sparse))
        noise.write(variants[-1], network)
    return variants


def _sparsify(task, name, unpruned, split, sparsity):
    from tfcompress import sparsify

    training = _adapted(task, filters.finetuning(task))
    with task.stage(name) as directory:
        return sparsify(
            unpruned,
            sparsity,
            *split.train,
            training,
            teacher=filters.cached(task, unpruned),
            validation=split.validation,
            directory=directory,
        )


def _adapted(task, training):
    """The hyperparameters, for ImageNet with steps that 224x224 pixels leave room for, a tenth as large."""
    if task.config.setting == "cifar10":
        return training
    return dataclasses.replace(
        training, batch_size=32, learning_rate=training.learning_rate / 10, weight_decay=training.weight_decay / 10
    )


class _SignalToNoise:
    """The table of how far, in dB, every int8 file is from its float network, layer by layer, on held-out images."""

    def __init__(self, task, split):
        self.task, self.images = task, split.validation[0][:64] if split.validation else None
        self.columns = {}
        path = task.result_directory / SIGNAL_TO_NOISE
        if measure.earlier(task) and path.exists():
            with open(path, newline="") as file:
                for row in csv.DictReader(file):
                    layer = row.pop("layer")
                    for name, snr in row.items():
                        self.columns.setdefault(name, {})[layer] = snr

    def write(self, variant, source):
        """Adds a variant made of a float network, and writes the table."""
        from tfcompress import compare

        if self.images is None:
            return
        layers = compare(source, variant.file.path, self.images).layers
        self.columns[variant.name] = {layer.name: f"{layer.snr:.1f}" for layer in layers}
        rows = [["layer", *self.columns]]
        for layer in self.columns["int8-ptq"]:
            rows.append([layer, *(column.get(layer, "") for column in self.columns.values())])
        self.task.publish_text(SIGNAL_TO_NOISE, "".join(",".join(row) + "\n" for row in rows))


def select(rows):
    """The smallest file of a variant that loses at most half a point of held-out accuracy; None if all lose more."""
    unpruned = ("float32", "int8-ptq", "int8-qat")
    good = [row for row in rows if row.variant not in unpruned and row.val_top1 >= rows[0].val_top1 - 0.005]
    return min(good, key=lambda row: row.tflite_bytes, default=None)


if __name__ == "__main__":
    runner.main("mobilenet", PROFILES, run)
