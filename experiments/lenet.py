"""LeNet-5 on MNIST: magnitude pruning, then quantization-aware training (Sun & Ye 2020).

Computer Science 47(8):261-266, doi 10.11896/jsjkx.190700062. Published: LeNet from 1.64 M to 0.36 M at a drop of 1.6 pt.
Reconstructed from the abstract: Caffe's LeNet-5, whose weights are pruned by magnitude with the ramp of Zhu & Gupta
2017, then trained with quantization of weights and activations (Jacob et al. 2018) that keeps the zeros. Beyond the
paper: sparsity is spread over the layers by LAMP scores (Lee et al. 2021), each level starts from the one below, and
the fine-tuning learns from the dense float network (Hinton et al. 2015).

    python -m experiments.lenet --profile=full --seed=0

Without MNIST and without a network the same steps run on scikit-learn's digits, as experiment "lenet-digits".
"""

import dataclasses
import json

from experiments import runner


def option(default, help):
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Config:
    """What a profile fixes; the hyperparameters that do not change with the profile stand in `run`."""

    dataset: str = option("mnist", "mnist, fashion_mnist or digits")
    train_images: int = option(0, "use only so many training images; 0 means all")
    epochs: int = option(30, "epochs of the float network")
    sparse_epochs: int = option(10, "epochs of pruning for each sparsity")
    qat_epochs: int = option(5, "epochs of quantization-aware training for each variant")
    sparsities: tuple = option((0.5, 0.7, 0.8, 0.9, 0.95, 0.98), "fractions of the weights to remove, increasing")


PROFILES = {
    "smoke": Config(dataset="digits", train_images=512, epochs=2, sparse_epochs=1, qat_epochs=1, sparsities=(0.5, 0.9)),
    "quick": Config(train_images=20000, epochs=6, sparse_epochs=3, qat_epochs=2, sparsities=(0.5, 0.9, 0.98)),
    "full": Config(),
}
