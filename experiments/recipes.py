"""The shipped recipes on models of other people's making: what `tfcompress compress` gives.

    python -m experiments.recipes --profile=full
    python -m experiments.recipes --profile=full --model=mobilenet_v2 --train_images=10000 --recipes=small

mnist_convnet is the simple convnet of the Keras examples (34,826 parameters, softmax, dropout), trained here for 12
epochs. mobilenet_v2, efficientnet_b0 and resnet50_v2 come from keras.applications, without their weights: they are
trained here on CIFAR-10's small images, so that only the change of their accuracy says something. resnet20 is the
baseline of `experiments.resnet`. One record, `results/recipes-<model>`: the float32 file, the model's own int8 file
(QAT, nothing removed: recipe safe) and what each recipe makes of it.
"""

import dataclasses

from experiments import filters, measure, runner
from experiments.runner import load_split, option

RECIPES = ("small", "fast", "safe")
DATASETS = {
    "mnist_convnet": "mnist",
    "resnet20": "cifar10",
    "mobilenet_v2": "cifar10",
    "efficientnet_b0": "cifar10",
    "resnet50_v2": "cifar10",
}
# ResNet20 was trained on random crops and flips; the others without.
AUGMENTATION = {"resnet20": {"crop_padding": 4, "flip": True}}


@dataclasses.dataclass(frozen=True)
class Config:
    """What a profile fixes."""

    model: str = option("mnist_convnet", f"one of {', '.join(DATASETS)}")
    dataset: str = option("", "data set; without it mnist for mnist_convnet and cifar10 for the others")
    train_images: int = option(0, "train on so many images only; 0 means all")
    epochs: int = option(12, "epochs of the model before compression")
    recipes: tuple = option(RECIPES, "recipes to apply", identity=False)
    bfloat16: bool = option(False, "whether the model is trained, and fine-tuned by the recipes, in bfloat16")

    def __post_init__(self):
        if self.model not in DATASETS:
            raise ValueError(f"model must be one of {', '.join(DATASETS)}. Received: {self.model!r}")
        if self.model == "resnet20" and (self.train_images or self.dataset not in ("", "cifar10")):
            raise ValueError(
                "resnet20 was trained on all of CIFAR-10 and is compressed on it only (--profile=full). Received: "
                f"dataset={self.dataset!r}, train_images={self.train_images}"
            )
        if not self.recipes or set(self.recipes) - set(RECIPES):
            raise ValueError(f"recipes must be among {', '.join(RECIPES)}. Received: {', '.join(self.recipes)}")


PROFILES = {
    "smoke": Config(dataset="digits", train_images=512, epochs=1, recipes=("safe",)),
    "quick": Config(train_images=10000, epochs=4),
    "full": Config(),
}


def run(task):
    """Trains the model and compresses it by every recipe; every stage resumes where it was interrupted."""
    from tfcompress import benchmark_interleaved, compress
    from tfcompress.datasets import UserData
    from tfcompress.training.checkpoint import digest

    config = task.config
    if config.model == "resnet20" and task.seed:
        raise SystemExit(f"resnet20 and what the recipes make of it do not depend on the seed. Received: {task.seed}")
    if config.model == "resnet20" and "epochs" in task.given:
        raise SystemExit(f"resnet20 is trained already: epochs would do nothing. Received: {config.epochs}")
    name = config.dataset or DATASETS[config.model]
    held_out = filters.Config.held_out if config.model == "resnet20" else 5000
    dataset, split = load_split(task, name, held_out, config.train_images, rgb=config.model != "mnist_convnet")
    task.experiment = f"recipes-{config.model}" + ("" if dataset == DATASETS[config.model] else f"-{dataset}")
    scaling = "0-255" if config.model == "efficientnet_b0" else "0-1"
    parts = [split.train, split.validation, split.test]
    if scaling == "0-255":
        parts = [(x.astype("float32"), y) for x, y in parts]
    data = UserData(*parts, tuple(str(i) for i in range(10)), scaling, dataset)
    model = _resnet20(task, dataset) if config.model == "resnet20" else _trained(task, data)
    task.baseline = digest(model.get_weights())[:16]
    summaries = {}
    for recipe in config.recipes:
        with task.stage(recipe) as directory:
            augmentation = AUGMENTATION.get(config.model)
            output = compress(
                model, data, recipe, directory / "output", augmentation=augmentation, bfloat16=config.bfloat16
            )
            summaries[recipe] = output.summary
    unchanged = _row("float32", summaries[config.recipes[0]], 0)
    before = measure.earlier(task, unchanged.gzip_bytes)
    rows = {**measure.rows_of(before), "float32": unchanged}
    rows |= {f"{recipe}-int8-qat": _row(f"{recipe}-int8-qat", summary, -1) for recipe, summary in summaries.items()}
    files = {f"{recipe}-int8-qat": task.directory / recipe / "output" / "model.tflite" for recipe in RECIPES}
    files["float32"] = task.directory / config.recipes[0] / "output" / "steps" / "original" / "model.tflite"
    files = {name: path for name, path in files.items() if name in rows and path.exists()}
    for name, latency in zip(files, benchmark_interleaved(list(files.values()))):
        rows[name] = dataclasses.replace(rows[name], latency_ms=latency.median)
    measure.write(task, dataset, list(rows.values()), before)
    task.close()


def _resnet20(task, dataset):
    """The baseline of `experiments.resnet`."""
    from tfcompress.models import resnet

    path = task.results / "resnet20" / "baseline-full-seed0.npz"
    if dataset != "cifar10" or not path.exists():
        raise SystemExit(
            f"resnet20 needs CIFAR-10 and {path}, which `python -m experiments.resnet --model=resnet20 --profile=full` "
            f"writes. Received: {dataset}, " + ("the file" if path.exists() else "no file")
        )
    model = resnet(20, 10)
    filters.load_weights(model, path)
    return model


def _trained(task, data):
    import keras

    from tfcompress.outputs import as_logits, with_softmax
    from tfcompress.training import TrainingConfig, fit

    keras.utils.set_random_seed(task.seed)
    model, _ = as_logits(_build(task.config.model))
    training = TrainingConfig(
        epochs=task.config.epochs,
        optimizer="adam",
        learning_rate=1e-3,
        schedule="constant",
        precision="mixed_bfloat16" if task.config.bfloat16 else "float32",
        seed=task.seed,
    )
    with task.stage("train") as directory:
        fit(model, *data.train, training, validation=data.validation, directory=directory)
    return with_softmax(model)


def _build(name):
    from keras import applications

    if name == "mnist_convnet":
        return _mnist_convnet()
    network = {
        "mobilenet_v2": applications.MobileNetV2,
        "efficientnet_b0": applications.EfficientNetB0,
        "resnet50_v2": applications.ResNet50V2,
    }[name]
    return network(weights=None, input_shape=(32, 32, 3), classes=10)


def _mnist_convnet():
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ],
        name="mnist_convnet",
    )


def _row(variant, summary, which):
    """The row of the original (0) or of the final file (-1)."""
    from tfcompress.reporting import Row

    step, file = summary["steps"][which], summary["file"]
    final = which == -1
    return Row(
        variant=variant,
        top1_tflite=file["top1"] if final else file["top1_before"],
        val_top1=step["top1"],
        params=step["params"],
        macs=step["macs"],
        sparsity=0.0,
        tflite_bytes=step["bytes"],
        gzip_bytes=step["gzip_bytes"],
    )


if __name__ == "__main__":
    runner.main("recipes", PROFILES, run)
