"""The shipped recipes on models of other people's making: what `tfcompress compress` gives.

    python -m experiments.recipes --profile=full

mnist_convnet is the simple convnet of the Keras examples (34,826 parameters, softmax, dropout), trained here as there.
One record, `results/recipes-<model>`: the float32 file and what each recipe makes of it.
"""

import dataclasses

from experiments import measure, runner
from experiments.runner import load_split, option


@dataclasses.dataclass(frozen=True)
class Config:
    """What a profile fixes."""

    model: str = option("mnist_convnet", "mnist_convnet")
    dataset: str = option("mnist", "mnist, fashion_mnist or digits")
    train_images: int = option(0, "train on so many images only; 0 means all")
    epochs: int = option(12, "epochs of the model before compression")
    recipes: tuple = option(("small", "fast", "safe"), "recipes to apply", identity=False)


PROFILES = {
    "smoke": Config(dataset="digits", train_images=512, epochs=1, recipes=("safe",)),
    "quick": Config(train_images=10000, epochs=4),
    "full": Config(),
}


def run(task):
    """Trains the model and compresses it by every recipe; every stage resumes where it was interrupted."""
    from tfcompress import compress
    from tfcompress.datasets import UserData

    config = task.config
    dataset, split = load_split(task, config.dataset, held_out=5000, train_images=config.train_images)
    task.experiment = f"recipes-{config.model}" + ("" if dataset == "mnist" else f"-{dataset}")
    names = tuple(str(i) for i in range(10))
    data = UserData(split.train, split.validation, split.test, names, "0-1", dataset)
    with task.stage("train") as directory:
        model = _trained(task, split, directory)
    summaries = {}
    for recipe in config.recipes:
        with task.stage(recipe) as directory:
            summaries[recipe] = compress(model, data, recipe, directory / "output").summary
    rows = [_row("float32", summaries[config.recipes[0]], 0)]
    rows += [_row(f"{recipe}-int8-qat", summary, -1) for recipe, summary in summaries.items()]
    measure.write(task, dataset, rows)
    task.close()


def _trained(task, split, directory):
    import keras

    from tfcompress.compression.outputs import as_logits, with_softmax
    from tfcompress.training import TrainingConfig, fit

    keras.utils.set_random_seed(task.seed)
    model, _ = as_logits(_mnist_convnet())
    training = TrainingConfig(
        epochs=task.config.epochs,
        optimizer="adam",
        learning_rate=1e-3,
        schedule="constant",
        seed=task.seed,
    )
    fit(model, *split.train, training, validation=split.validation, directory=directory)
    return with_softmax(model)


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
        latency_ms=step["latency_ms"],
    )


if __name__ == "__main__":
    runner.main("recipes", PROFILES, run)
