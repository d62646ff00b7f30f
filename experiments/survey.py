"""One network, six families of compression: what each makes of LeNet-5 on MNIST.

    quantization             int8-qat
    low rank                 lowrank-int8-qat            fc1 in two, 14 times smaller (Denton et al. 2014)
    pruning of weights       sparse92-int8-qat           8 % of 431,000 left, as by Han et al. 2015
      and weight sharing     sparse92-shared4-int8-qat   of four values per layer (Han et al. 2016, Deep Compression)
    pruning of filters       l1-params92-int8-qat        as many parameters gone (Li et al. 2017)
    binary weights           binary-int8                 conv2 and fc1 (Rastegari et al. 2016, BWN)
    compact network          thin-int8-qat               the shape of l1-params92, from random weights
      and distillation       thin-distilled-int8-qat     the same, from the float network too (Hinton et al. 2015)

All but the compact networks start from the float network and learn from it; these two train as long as it and a
fine-tuning together. The published example of distillation is `experiments.distillation`.

    python -m experiments.survey --profile=full --seed=0

Without MNIST and without a network the same steps run on scikit-learn's digits, as experiment "survey-digits".
"""

import dataclasses

from experiments import lenet, measure, runner
from experiments.runner import check_at_least, option


@dataclasses.dataclass(frozen=True)
class Config(lenet.Images):
    """What a profile fixes; the other hyperparameters stand beside the stages that use them."""

    epochs: int = option(25, "epochs of the float network")
    finetune_epochs: int = option(10, "epochs of each family")
    qat_epochs: int = option(2, "epochs of quantization-aware training for each variant")

    def __post_init__(self):
        check_at_least(0, self, "train_images")
        check_at_least(1, self, "epochs", "finetune_epochs", "qat_epochs")


PROFILES = {
    "smoke": Config(dataset="digits", train_images=512, epochs=2, finetune_epochs=1, qat_epochs=1),
    "quick": Config(train_images=20000, epochs=6, finetune_epochs=3),
    "full": Config(),
}

FC1_RANK = 22  # 14 times fewer parameters in fc1; Denton et al. report 13.4 times for a first dense layer
REMOVED = 0.92  # of the weights, or of the parameters where filters go; Han et al. keep 36,000 of 431,000
CLUSTERS = 4  # values per layer


def run(task):
    """Runs all stages; every one resumes where it was interrupted."""
    split = lenet.load(task)
    config = task.config
    with task.stage("float32") as directory:
        baseline = lenet.train_float(split, config, task.seed, directory)
    variants = [measure.export(task, "float32", baseline, baseline, "float32")]
    networks = {"": baseline}
    for name, make in FAMILIES.items():
        with task.stage(name) as directory:
            networks[name] = make(task, split, networks, directory)
    for name, network in networks.items():
        # An int8 file holds binary weights as they are; quantization-aware training would move them.
        if name == "binary":
            variants.append(measure.export(task, "binary-int8", network, network, "int8", split))
            continue
        variant = f"{name}-int8-qat".lstrip("-")
        with task.stage(variant) as directory:
            kept = PRESERVE.get(name, {})
            quantized = lenet.quantize(network, baseline, split, config.qat_epochs, task.seed, directory, **kept)
        variants.append(measure.export(task, variant, quantized, network, "int8"))
    measure.record(task, config.dataset, split, variants, lambda rows: None)
    task.close()


def _low_rank(task, split, networks, directory):
    from tfcompress import factorize

    thinner = factorize(networks[""], ranks={"fc1": FC1_RANK}).model
    return lenet.trained(
        thinner, lenet.finetuning(task.config.finetune_epochs, task.seed), split, directory, networks[""]
    )


def _sparse(task, split, networks, directory):
    from tfcompress import sparsify

    return sparsify(networks[""], REMOVED, *split.train, **_learning(task, split, networks, directory))


def _shared(task, split, networks, directory):
    from tfcompress import share_weights

    return share_weights(networks["sparse92"], CLUSTERS, *split.train, **_learning(task, split, networks, directory))


def _fewer_filters(task, split, networks, directory):
    from tfcompress import prune_channels

    smaller, plan = prune_channels(networks[""], "l1", params_reduction=REMOVED)
    task.publish_text("l1-params92.plan.json", plan.to_json())
    return lenet.trained(
        smaller, lenet.retraining(task.config.finetune_epochs, task.seed), split, directory, networks[""]
    )


def _binary(task, split, networks, directory):
    from tfcompress import binarize

    return binarize(networks[""], *split.train, **_learning(task, split, networks, directory))


def _thin(task, split, networks, directory, teacher=None):
    import keras

    keras.utils.set_random_seed(task.seed)
    thin = keras.models.clone_model(networks["l1-params92"])
    training = lenet.retraining(task.config.epochs + task.config.finetune_epochs, task.seed)
    return lenet.trained(thin, training, split, directory, teacher)


def _thin_distilled(task, split, networks, directory):
    return _thin(task, split, networks, directory, teacher=networks[""])


def _learning(task, split, networks, directory):
    """How sparse, shared and binary networks are trained."""
    return {
        "config": lenet.finetuning(task.config.finetune_epochs, task.seed),
        "teacher": networks[""],
        "validation": split.validation,
        "directory": directory,
    }


# {name: its float network, of (task, split, the networks before it, directory)}; "" is the baseline.
FAMILIES = {
    "lowrank": _low_rank,
    "sparse92": _sparse,
    "sparse92-shared4": _shared,
    "l1-params92": _fewer_filters,
    "binary": _binary,
    "thin": _thin,
    "thin-distilled": _thin_distilled,
}
# What the quantization-aware training of a network keeps.
PRESERVE = {"sparse92": {"preserve_sparsity": True}, "sparse92-shared4": {"preserve_sharing": True}}


if __name__ == "__main__":
    runner.main("survey", PROFILES, run)
