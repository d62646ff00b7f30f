"""Distillation on MNIST, as in its paper: what a network learns from a larger one instead of from labels alone.

Hinton, Vinyals & Dean 2015, arXiv 1503.02531, section 3: two hidden layers of 1,200 units, with dropout and images
jittered by up to two pixels, make 67 errors on the test images; two of 800 without regularization make 146, and 74 when
they learn the softened outputs of the first, on images that are not jittered. Ours differ: no constraint on the weights
but weight decay, 5,000 training images held out, and cross-entropy with labels for a tenth of the loss.

    python -m experiments.distillation --profile=full --seed=0

The record's float32 is the teacher. Without MNIST and without a network the same steps run on scikit-learn's digits, as
experiment "distillation-digits".
"""

import dataclasses

from experiments import lenet, measure, runner
from experiments.runner import check_at_least, option

TEMPERATURE = 20.0  # as in the paper


@dataclasses.dataclass(frozen=True)
class Config(lenet.Images):
    """What a profile fixes; the other hyperparameters stand beside the stages that use them."""

    teacher_epochs: int = option(60, "epochs of the large network")
    epochs: int = option(40, "epochs of each small network")

    def __post_init__(self):
        check_at_least(0, self, "train_images")
        check_at_least(1, self, "teacher_epochs", "epochs")


PROFILES = {
    "smoke": Config(dataset="digits", train_images=512, teacher_epochs=2, epochs=1),
    "quick": Config(train_images=20000, teacher_epochs=8, epochs=6),
    "full": Config(),
}


def run(task):
    """Runs all stages; every one resumes where it was interrupted."""
    from tfcompress.training import TrainingConfig

    split = lenet.load(task)
    config = task.config
    training = TrainingConfig(
        epochs=config.teacher_epochs,
        learning_rate=0.05,
        warmup_epochs=1,
        weight_decay=1e-4,
        crop_padding=2,
        seed=task.seed,
    )
    with task.stage("float32") as directory:
        trained = lenet.trained(_network(1200, task.seed, dropout=0.5), training, split, directory)
        teacher = _network(1200, task.seed)
        teacher.set_weights(trained.get_weights())
    variants = [measure.export(task, "float32", teacher, teacher, "float32")]
    training = TrainingConfig(
        epochs=config.epochs,
        optimizer="adam",
        learning_rate=1e-3,
        warmup_epochs=1,
        temperature=TEMPERATURE,
        seed=task.seed,
    )
    for name, learned in (("student", None), ("student-distilled", teacher)):
        with task.stage(name) as directory:
            student = lenet.trained(_network(800, task.seed), training, split, directory, learned)
        variants.append(measure.export(task, name, student, student, "float32"))
    measure.record(task, config.dataset, split, variants, lambda rows: None)
    task.close()


def _network(units, seed, dropout=0.0):
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    network = [keras.Input((28, 28, 1)), layers.Flatten()]
    for i in range(2):
        network.append(layers.Dense(units, activation="relu", name=f"hidden{i + 1}"))
        if dropout:
            network.append(layers.Dropout(dropout))
    return keras.Sequential([*network, layers.Dense(10, name="logits")], name=f"mlp{units}")


if __name__ == "__main__":
    runner.main("distillation", PROFILES, run)
