"""LeNet-5 on MNIST: magnitude pruning, then quantization-aware training (Sun & Ye 2020).

Paper: Computer Science 47(8):261-266, doi 10.11896/jsjkx.190700062: LeNet from 1.64 M to 0.36 M, a drop of 1.6 pt.
Reconstructed from the abstract: Caffe's LeNet-5, whose weights are pruned by magnitude with the ramp of Zhu & Gupta
2017, then trained with quantization of weights and activations (Jacob et al. 2018) that keeps the zeros. Beyond the
paper: sparsity is spread over the layers by LAMP scores (Lee et al. 2021), each level starts from the one below, and
the fine-tuning learns from the dense float network (Hinton et al. 2015).

    python -m experiments.lenet --profile=full --seed=0

Without MNIST and without a network the same steps run on scikit-learn's digits, as experiment "lenet-digits".
Our numbers beside the published ones: results/README.md.
"""

import dataclasses

import numpy as np

from experiments import measure, runner
from experiments.runner import check_at_least, load_split, option


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of an experiment on MNIST."""

    dataset: str = option("mnist", "mnist, fashion_mnist or digits")
    train_images: int = option(0, "train on so many images only; 0 means all")


@dataclasses.dataclass(frozen=True)
class Config(Images):
    """What a profile fixes; the other hyperparameters stand beside the stages that use them."""

    epochs: int = option(25, "epochs of the float network")
    sparsities: tuple = option((0.5, 0.7, 0.8, 0.9, 0.95, 0.98), "fractions of the weights to remove, increasing")
    sparse_epochs: tuple = option((2, 2, 2, 3, 4, 5), "epochs of pruning for each sparsity")
    qat_epochs: int = option(2, "epochs of quantization-aware training for each variant")
    small_epochs: int = option(30, "epochs of each structurally pruned network")
    small_qat_epochs: int = option(5, "epochs of its quantization-aware training")

    def __post_init__(self):
        check_at_least(0, self, "train_images")
        check_at_least(1, self, "epochs", "sparse_epochs", "qat_epochs", "small_epochs", "small_qat_epochs")
        if not self.sparsities or not all(0 < sparsity < 1 for sparsity in self.sparsities):
            raise ValueError(f"sparsities must be fractions between 0 and 1. Received: {self.sparsities}")
        if len(self.sparse_epochs) != len(self.sparsities) or tuple(sorted({*self.sparsities})) != self.sparsities:
            raise ValueError(
                "sparsities must increase, and sparse_epochs give one number for each. "
                f"Received: {self.sparsities} and {self.sparse_epochs}"
            )


# Output channels of the structurally pruned networks, for raw int8 files of at most so many bytes.
SMALL = {
    "small-16KiB": {"conv1": 10, "conv2": 23, "fc1": 18},
    "small-10KiB": {"conv1": 8, "conv2": 18, "fc1": 12},
}

PROFILES = {
    "smoke": Config(
        dataset="digits", train_images=512, epochs=2, sparsities=(0.5, 0.9), sparse_epochs=(1, 1), qat_epochs=1
    ),
    "quick": Config(
        train_images=20000,
        epochs=6,
        sparsities=(0.5, 0.9, 0.98),
        sparse_epochs=(2, 2, 3),
        qat_epochs=2,
        small_epochs=8,
        small_qat_epochs=2,
    ),
    "full": Config(),
}


def run(task):
    """Runs all stages; every one resumes where it was interrupted."""
    split = load(task)
    config = task.config
    with task.stage("float32") as directory:
        baseline = train_float(split, config, task.seed, directory)
    variants = [
        measure.export(task, "float32", baseline, baseline, "float32"),
        measure.export(task, "int8-ptq", baseline, baseline, "int8", split),
    ]
    with task.stage("int8-qat") as directory:
        quantized = quantize(baseline, baseline, split, config.qat_epochs, task.seed, directory)
    variants.append(measure.export(task, "int8-qat", quantized, baseline, "int8"))
    sparse = baseline
    for sparsity, epochs in zip(config.sparsities, config.sparse_epochs):
        name = f"sparse{100 * sparsity:g}"
        with task.stage(name) as directory:
            sparse = _prune(sparse, sparsity, epochs, baseline, split, task.seed, directory)
        with task.stage(f"{name}-int8-qat") as directory:
            quantized = quantize(
                sparse, baseline, split, config.qat_epochs, task.seed, directory, preserve_sparsity=True
            )
        variants.append(measure.export(task, f"{name}-int8-qat", quantized, baseline, "int8"))
    for name, widths in SMALL.items():
        with task.stage(name) as directory:
            small = _shrink(task, name, widths, baseline, split, config, directory)
        with task.stage(f"{name}-int8-qat") as directory:
            quantized = quantize(small, baseline, split, config.small_qat_epochs, task.seed, directory)
        variants.append(measure.export(task, f"{name}-int8-qat", quantized, small, "int8"))
    selected = measure.record(task, config.dataset, split, variants, _select)
    _draw_weights(task, variants, selected)
    task.close()


def load(task):
    """The `Split` of the configuration's data set; with another one than MNIST it is another experiment."""
    dataset, split = load_split(task, task.config.dataset, held_out=5000, train_images=task.config.train_images)
    task.config = dataclasses.replace(task.config, dataset=dataset)
    if dataset != "mnist":
        task.experiment = f"{task.experiment}-{dataset}"
    return split


def train_float(split, config, seed, directory):
    import keras

    from tfcompress.models import lenet5
    from tfcompress.training import TrainingConfig, fit

    keras.utils.set_random_seed(seed)
    trained = lenet5(dropout=0.5)
    training = TrainingConfig(
        epochs=config.epochs, learning_rate=0.05, warmup_epochs=1, weight_decay=5e-3, crop_padding=2, seed=seed
    )
    fit(trained, *split.train, training, validation=split.validation, directory=directory)
    model = lenet5()
    model.set_weights(trained.get_weights())
    return model


def finetuning(epochs, seed):
    """How a network that still knows what it does learns on."""
    from tfcompress.training import TrainingConfig

    return TrainingConfig(epochs=epochs, learning_rate=0.02, crop_padding=2, seed=seed)


def retraining(epochs, seed):
    """How a network learns that has lost most of its filters, or knows nothing.

    SGD at the float network's rate diverged here: logits far from the teacher's give large gradients at first.
    """
    from tfcompress.training import TrainingConfig

    return TrainingConfig(
        epochs=epochs, optimizer="adam", learning_rate=3e-3, warmup_epochs=1, crop_padding=2, seed=seed
    )


def _prune(model, sparsity, epochs, teacher, split, seed, directory):
    from tfcompress import sparsify

    training = finetuning(epochs, seed)
    return sparsify(
        model, sparsity, *split.train, training, teacher=teacher, validation=split.validation, directory=directory
    )


def _shrink(task, name, widths, baseline, split, config, directory):
    """Removes filters down to the given widths and trains what is left on the labels and the unpruned network."""
    from tfcompress import prune_channels

    ratios = {layer: 1 - width / baseline.get_layer(layer).output.shape[-1] for layer, width in widths.items()}
    small, plan = prune_channels(baseline, "l2", ratios=ratios)
    task.publish_text(f"{name}.plan.json", plan.to_json())
    return trained(small, retraining(config.small_epochs, task.seed), split, directory, baseline)


def trained(model, training, split, directory, teacher=None):
    """The model, trained."""
    from tfcompress.training import fit

    fit(model, *split.train, training, validation=split.validation, teacher=teacher, directory=directory)
    return model


def quantize(model, teacher, split, epochs, seed, directory, **preserve):
    from tfcompress import quantization_aware_training
    from tfcompress.training import TrainingConfig

    training = TrainingConfig(epochs=epochs, learning_rate=0.005, crop_padding=2, seed=seed)
    return quantization_aware_training(
        model, *split.train, training, **preserve, teacher=teacher, validation=split.validation, directory=directory
    )


def _select(rows):
    """The smallest sparse file that loses at most 0.2 pt of held-out accuracy; the densest one if none does."""
    sparse = [row for row in rows if row.variant.startswith("sparse")]
    good = [row for row in sparse if row.val_top1 >= rows[0].val_top1 - 0.002]
    return min(good, key=lambda row: row.gzip_bytes) if good else sparse[0]


def _draw_weights(task, variants, selected):
    """Stores the histograms of the weights before pruning and in the selected variant, for the plots."""
    from tfcompress.reporting import write_weight_histograms

    weights = {variant.name: _weights(variant.model) for variant in variants}
    write_weight_histograms(weights["float32"], weights[selected.variant], task.result_directory)


def _weights(model):
    from tfcompress.sparsity import prunable_kernels

    return {
        name: np.concatenate([np.ravel(kernel) for kernel in kernels])
        for name, kernels in prunable_kernels(model).items()
    }


if __name__ == "__main__":
    runner.main("lenet", PROFILES, run)
