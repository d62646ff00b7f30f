"""VGG16, ResNets and DenseNets on CIFAR-10 and CIFAR-100: the diversifying algorithm (Chen 2018).

Paper: NCCU master's thesis G0105753018, doi 10.6814/THE.NCCU.CS.003.2019.B02: VGG16 on CIFAR-10 without 78.6 % of its
parameters and 46 % of its FLOPs, nothing lost, or without 90.7 % and 70 %, about 1 pt lost; on CIFAR-100 46 % and 18 %,
60.7 % and 37.5 %. Reconstructed from the abstract; see `tfcompress.criteria.Diversity`. The thesis chose a threshold
for each layer; here they are solved for, so that both cuts are reached, and stand beside the record. As in the thesis,
convolutions get narrower: VGG16's dense layer does not, nor do the residual streams of a ResNet.

    python -m experiments.diversify --model=vgg16 --dataset=cifar10 --profile=full --seed=0

Models: vgg16, resnet<depth>, densenet<depth>, densenet-bc<depth>. Where the results hold a baseline, everything starts
from it, trained as it was; --train_baseline puts another in its place. --baseline=<file> starts from the .npz of other
results, or from a .keras file.

A variant is written criterion-point, with options behind it in this order:

    diversity-b                       the cuts of a point: a or b, VGG16's as published (on CIFAR-10 also beyond); other
                                      networks lose 30 and 50 %
    diversity-params60-macs50         60 % of the parameters and 50 % of the MACs
    diversity-given                   at the thresholds of --thresholds
    redundancy-tau0.54                at one threshold for all layers (Ayinde & Zurada 2018)
    diversity-b-nodistill             fine-tuned on the labels alone, without the baseline as a teacher
    diversity-b-cutout                fine-tuned on images with squares hidden, as those of --baseline_cutout
    diversity-b-cutmix                fine-tuned on images of which half show another one in a rectangle (CutMix)
    diversity-b-long                  fine-tuned three times as long
    diversity-b-iterative             in four steps, each with a quarter of the epochs

Other criteria than diversity (l1-b, l2-given, ...) get the widths that diversity has at that point, and choose filters
of their own. --jobs=2 trains two variants at a time, each on half of the cores, which does more in all than both on
all cores. All variants but -long have the same fine-tuning budget. With --variants only those are trained, and added
to what the record of the same configuration holds; those by diversity stay in the results where they are small, and
--from_results does not train them again. Without CIFAR the same steps run on scikit-learn's digits, as
experiment "<model>-digits", of ResNets "<model>-diversify-digits".
"""

import csv
import dataclasses
import functools
import io
import re

import numpy as np

from experiments import filters, measure, runner
from experiments.resnet import streams
from experiments.runner import load_split, option, or_exit

# (parameters, MACs) cut of the published points, and of ours for networks whose points the abstract does not give.
POINTS = {
    ("vgg16", "cifar10"): {"a": (0.786, 0.46), "b": (0.907, 0.70), "beyond": (0.95, 0.741)},
    ("vgg16", "cifar100"): {"a": (0.46, 0.18), "b": (0.607, 0.375)},
}
OUR_POINTS = {"a": (0.3, 0.3), "b": (0.5, 0.5)}
COMPARED = ("l1-b", "redundancy-b", "redundancy-tau0.54", "geometric_median-b", "random-b")
BEST = "cutmix-long"  # on held-out images, of the fine-tunings that VGG16 was given at point b
MODELS = r"vgg16|resnet\d+|densenet(-bc)?\d+"
CUTS = r"params(\d+(?:\.\d+)?)-macs(\d+(?:\.\d+)?)"


@dataclasses.dataclass(frozen=True)
class Config(filters.Config):
    """Configuration whose variants are checked before anything runs."""

    quantized: tuple = option(
        (),
        f"brought to int8: variants, float32 or {measure.NOTHING!r}; by default those by diversity",
        identity=False,
    )
    thresholds: tuple = option(
        (), "cosines for the variants -given, one for each layer, front to back", identity="if given"
    )
    baseline: str = option("", "file of the baseline's weights, which is then not trained", identity=False)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "thresholds", tuple(map(float, self.thresholds)))
        if not all(-1 <= threshold <= 1 for threshold in self.thresholds):
            raise ValueError(f"thresholds must be cosines in [-1, 1]. Received: {self.thresholds}")
        if not re.fullmatch(MODELS, self.model):
            raise ValueError(f"model must be vgg16, resnet20, densenet40, densenet-bc40, ... Received: {self.model!r}")
        if self.baseline and self.train_baseline:
            raise ValueError(f"train_baseline trains what baseline gives. Received: both, baseline={self.baseline!r}")
        for name in self.variants:
            if "iterative" in parse(name, self).options and self.finetune_epochs < filters.STEPS:
                raise ValueError(
                    f"{name} takes at least {filters.STEPS} finetune_epochs. Received: {self.finetune_epochs}"
                )
        filters.check_quantized(self, self.variants or default_variants(self))


@dataclasses.dataclass(frozen=True)
class Pruning:
    """What the name of a variant says.

    Attributes:
        criterion: which filters go.
        cuts: (parameters, MACs) to remove, fractions; None for the given thresholds, or the criterion's own.
        options: how what is left is fine-tuned, as in `filters.OPTIONS`.
    """

    criterion: object
    cuts: tuple | None
    options: frozenset


def parse(name, config):
    """Reads the name of a variant.

    Raises:
        ValueError: for one that is not written criterion-point, a point that this network and data set do not have,
            given thresholds that are not given, or one threshold in steps.
    """
    from tfcompress import criteria

    points = POINTS.get((config.model, config.dataset), OUR_POINTS)
    base, options = filters.split_options(name)
    match = re.fullmatch(rf"(\w+)-({'|'.join(points)}|given|tau(\d*\.?\d+)|{CUTS})", base)
    if not match or "soft" in options:
        raise ValueError(
            f"a variant of {config.model} on {config.dataset} is written criterion-point, with a point of "
            f"{', '.join(points)}, given, params<percent>-macs<percent> or tau<cosine>, with -nodistill, "
            f"-cutout, -cutmix, -long and -iterative behind it, in this order, for another fine-tuning (diversity-b). "
            f"Received: {name!r}"
        )
    criterion, point, tau, params, macs = match.groups()
    criterion = criteria.get(criterion)
    if point == "given" and not config.thresholds:
        raise ValueError(f"{name} needs --thresholds: a cosine for each layer, front to back")
    if tau and not isinstance(criterion, criteria.Diversity | criteria.Redundancy):
        raise ValueError(f"{name}: only diversity and redundancy have a threshold")
    if tau and "iterative" in options:
        raise ValueError(f"{name}: only cuts are spread over steps, not a threshold for all layers")
    if tau:
        return Pruning(type(criterion)(float(tau)), None, options)
    cuts = (float(params) / 100, float(macs) / 100) if params else points.get(point)
    if cuts and not all(0 < cut < 1 for cut in cuts):
        raise ValueError(f"{name}: percents must lie between 0 and 100")
    return Pruning(criterion, cuts, options)


def default_variants(config):
    """Diversity at its points, the published ones with the best fine-tuning; on CIFAR-10 the other criteria, too.

    These have the usual fine-tuning, at point b, and so has diversity beside them.
    """
    compared = COMPARED if config.dataset == "cifar10" else ()
    published = POINTS.get((config.model, config.dataset))
    if not published:
        return (*(f"diversity-{point}" for point in OUR_POINTS), *compared)
    best = [f"diversity-{point}-{BEST}" for point in published]
    return (*best[:2], *(("diversity-b", *compared) if compared else ()), *best[2:])


PROFILES = {
    "smoke": Config(
        model="resnet8",
        dataset="digits",
        train_images=256,
        baseline_epochs=2,
        finetune_epochs=1,
        qat_epochs=1,
        variants=("diversity-b", "l1-b"),
    ),
    "quick": Config(
        model="vgg16",
        train_images=5000,
        baseline_epochs=8,
        finetune_epochs=3,
        qat_epochs=1,
        variants=("diversity-a", "diversity-b"),
    ),
    "full": Config(model="vgg16"),
}


def run(task):
    """Runs all stages; every one resumes where it was interrupted."""
    from tfcompress.reporting import write_similarities

    config = task.config
    dataset, split = load_split(task, config.dataset, config.held_out, config.train_images, rgb=True)
    task.experiment = experiment(config.model, dataset)
    build = functools.partial(network, config.model, int(split.test[1].max()) + 1)
    check_thresholds(config, or_exit(build))
    unpruned = filters.baseline(task, build, split, config.baseline)
    variants = [measure.export(task, "float32", unpruned, unpruned, "float32")]
    networks, plans = {"float32": unpruned}, {}

    def keep(record):
        record(task, dataset, split, variants, lambda rows: None)
        for name in diversified():
            filters.ship(task, name, networks[name])

    def diversified():
        return [name for name in plans if name.startswith("diversity")]

    widths_at = functools.cache(lambda cuts: widths(unpruned, config, cuts))
    names = config.variants or default_variants(config)
    kept = {name: filters.from_results(task, name) for name in names}
    keep(measure.record_so_far)
    filters.train_side_by_side(
        task,
        [name for name in names if not kept[name]],
        filters.to_quantize(config, [name for name in names if name.startswith("diversity")]),
    )
    for name in names:
        keep(measure.record_so_far)
        pruning = parse(name, config)
        thresholds, ratios = ({}, None) if pruning.criterion.threshold is not None else widths_at(pruning.cuts)
        model, plan = kept[name] or filters.prune_and_finetune(
            task,
            name,
            unpruned,
            split,
            pruning.criterion,
            pruning.options,
            skip=whole(unpruned),
            ratios=ratios,
        )
        networks[name], plans[name] = model, plan
        decisive = plan.criterion == "diversity" and "iterative" not in pruning.options
        task.publish_text(f"{name}.layers.csv", layers_csv(plan, thresholds if decisive else {}))
        variants.append(measure.export(task, name, model, model, "float32"))
    for name in filters.to_quantize(config, diversified()):
        keep(measure.record_so_far)
        variants.append(filters.quantize(task, name, networks[name], unpruned, split))
    keep(measure.record)
    name = next((name for name in ("diversity-b", *diversified()) if name in plans), None)
    if name == "diversity-b" or (name and "diversity-b" not in measure.recorded_variants(task)):
        write_similarities(similarities(name, unpruned, networks[name], plans[name]), task.result_directory)
    task.close()


def experiment(model, dataset):
    """Name of the experiment: no ResNet's is that of another experiment on the same data."""
    return f"{model}-diversify-{dataset}" if model.startswith("resnet") else f"{model}-{dataset}"


def network(name, classes):
    """The untrained network of a name."""
    from tfcompress.models import densenet, resnet, vgg16

    if name == "vgg16":
        return vgg16(classes=classes)
    family, depth = re.fullmatch(r"(\D+)(\d+)", name).groups()
    if family == "resnet":
        return resnet(int(depth), classes)
    bottleneck = {"bottleneck": True, "reduction": 0.5, "stem": 24} if family == "densenet-bc" else {}
    return densenet(int(depth), classes=classes, **bottleneck)


def whole(model):
    """The layers that keep their width: what is not a convolution, and what writes a residual stream."""
    return ("fc1",) if model.name == "vgg16" else streams(model) if model.name.startswith("resnet") else ()


def prunable(model):
    """The layers that get narrower, front to back."""
    from tfcompress import ChannelGraph

    return [group.name for group in ChannelGraph(model, whole(model)).groups]


def check_thresholds(config, model):
    """Refuses given thresholds that are not one for each layer of the network."""
    if config.thresholds and len(config.thresholds) != len(prunable(model)):
        raise SystemExit(
            f"--thresholds gives {len(config.thresholds)} cosines, but {config.model} has {len(prunable(model))} "
            f"layers to prune: {', '.join(prunable(model))}"
        )


def widths(model, config, cuts):
    """How narrow each layer gets by diversity.

    Args:
        model: the baseline.
        config: the `Config`.
        cuts: fractions of the parameters and of the MACs to remove; None for the given thresholds.

    Returns:
        {layer: threshold}, and {layer: fraction of its filters that goes}.
    """
    from tfcompress.surgery.thresholds import plan_by_thresholds, solve_thresholds

    skip = whole(model)
    if cuts is None:
        thresholds = dict(zip(prunable(model), config.thresholds))
    else:
        thresholds = solve_thresholds(model, params_reduction=cuts[0], macs_reduction=cuts[1], skip=skip)
    plan = plan_by_thresholds(model, thresholds, skip=skip)
    wanted = f" (wanted: {cuts[0]:.1%} and {cuts[1]:.1%})" if cuts else ""
    print(f"\n== thresholds: cut {plan.params_reduction:.2%} of parameters, {plan.macs_reduction:.2%} of MACs{wanted}")
    return thresholds, {layer: 1 - len(plan.kept[layer]) / plan.widths[layer] for layer in thresholds}


def layers_csv(plan, thresholds):
    """The thesis' appendix table: each layer's threshold, where it has one, and its filters before and after."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("layer", "threshold", "filters", "kept", "removed_percent"))
    for layer, width in plan.widths.items():
        kept = len(plan.kept[layer])
        threshold = f"{thresholds[layer]:.6f}" if layer in thresholds else ""
        table.writerow((layer, threshold, width, kept, f"{100 * (1 - kept / width):.1f}"))
    return text.getvalue()


def similarities(name, unpruned, pruned, plan):
    """Cosines between the filters of the first, the middle and the last layer that was pruned.

    Returns:
        {title: {"kept": number of filters, "before": (N, N) with those that stay first, "after": (kept, kept)}}.
    """
    from tfcompress.criteria.diversity import cosine_similarities

    def cosines(model, layer):
        kernel = np.asarray(model.get_layer(layer).kernel)
        return cosine_similarities(kernel.reshape(-1, kernel.shape[-1]).T)

    layers = [layer for layer, width in plan.widths.items() if len(plan.kept[layer]) < width]
    pictures = {}
    for layer in dict.fromkeys(layers[i] for i in (0, len(layers) // 2, -1) if layers):
        kept = plan.kept[layer]
        order = np.concatenate([kept, np.setdiff1d(np.arange(plan.widths[layer]), kept)])
        before = cosines(unpruned, layer)[np.ix_(order, order)]
        pictures[f"{name}, {layer}"] = {"kept": len(kept), "before": before, "after": cosines(pruned, layer)}
    return pictures


if __name__ == "__main__":
    runner.main("diversify", PROFILES, run)
