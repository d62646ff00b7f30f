"""ResNet20, 56 and 110 on CIFAR-10: filter pruning via distribution fitting (Zhang, Kou & Liu 2022).

Paper: Computer Technology and Development 32(12):136-141, doi 10.3969/j.issn.1673-629X.2022.12.021: ResNet110, more
than 62 % of the FLOPs cut, 0.14 lost. Reconstructed from the abstract; see `tfcompress.criteria.DistributionFit`. The
paper's line of work counts FLOPs of masked networks; here the networks are really smaller, and the cut in the
accounting of SFP and FPGM stands beside the real one.

    python -m experiments.resnet --model=resnet20 --profile=full --seed=0

A variant is written criterion-macs<percent>-<widths>, with options behind it in this order:

    distribution_fit_a-macs62-every     62 % of the MACs; every width gets narrower, the residual stream too
    l2-macs62-first                     only the first convolution of each block gets narrower
    l2-macs62-sensitive                 so, too, but each by as much as does little damage: distribution_fit_a, pruning
                                        one at a time, has measured it for all criteria
    l2-macs62-every-nodistill           fine-tuned on the labels alone, without the baseline as a teacher
    l2-macs62-first-soft                the papers' soft pruning: filters are zeroed after every epoch of the
                                        fine-tuning, may come back in the next, and are removed at its end. At cuts
                                        like these the network forgets (see ResNet20's results), and would by any
                                        criterion that keeps small filters on purpose, as distribution fitting does,
                                        for which there is none
    l2-macs62-every-cutout              fine-tuned on images with squares hidden, as those of --baseline_cutout
    l2-macs62-every-cutmix              fine-tuned on images of which half show another one in a rectangle (CutMix)
    l2-macs62-every-long                fine-tuned three times as long

Where the results hold a baseline, everything starts from it, trained as it was; --train_baseline puts another in its
place. A long training gets shorter where it starts from a shallower network, whose blocks are repeated
(`tfcompress.models.deepen`), as those of the results do: ResNet56's has --baseline_epochs=40 --baseline_cutout=8
--baseline_grown_from=results/resnet20/baseline-full-seed0.npz, ResNet110's 26 epochs behind ResNet56's.

Criteria: the names of `tfcompress.criteria` (but taylor, which needs images), and distribution_fit_a, _b, _c for the
three readings of the paper. --jobs=2 trains two variants at a time, each on half of the cores, which does more in all
than both on all cores. All variants start from one baseline (--baseline_seed) and, but for -long, have the same
fine-tuning budget. With --variants only those are trained, and added to what the record of the same configuration
holds. The selected network and what pruning each layer does stay in the results: with --from_results that network is
not trained again, to quantize it, say. Without CIFAR-10 the same steps run on scikit-learn's digits, as experiment
"resnet<depth>-digits".
"""

import dataclasses
import functools
import re

import numpy as np

from experiments import filters, measure, runner
from experiments.runner import load_split

VARIANTS = (
    "distribution_fit_a-macs{}-sensitive",
    "distribution_fit_a-macs{}-first",
    "distribution_fit_a-macs{}-every",
    "l2-macs{}-sensitive",
    "geometric_median-macs{}-sensitive",
    "random-macs{}-sensitive",
    "distribution_fit_b-macs{}-sensitive",
    "distribution_fit_c-macs{}-sensitive",
    "distribution_fit_a-macs{}-sensitive-nodistill",
    "l2-macs{}-sensitive-nodistill",
)
BEYOND = ("distribution_fit_a-macs70-sensitive", "distribution_fit_a-macs75-sensitive")
# The published cuts in percent, of Zhang et al. and of FPGM.
CUT = {"resnet110": 62, "resnet56": 53, "resnet20": 54}
WIDTHS = ("every", "first", "sensitive")
METHODS = {"a": "strata", "b": "wasserstein", "c": "normal"}


@dataclasses.dataclass(frozen=True)
class Config(filters.Config):
    """Configuration whose variants are checked before anything runs."""

    def __post_init__(self):
        super().__post_init__()
        if not re.fullmatch(r"resnet\d+", self.model):
            raise ValueError(f"model must be resnet20, resnet56, resnet110, ... Received: {self.model!r}")
        for name in self.variants:
            parse(name)
        filters.check_quantized(self, self.variants or default_variants(self.model))


@dataclasses.dataclass(frozen=True)
class Pruning:
    """What the name of a variant says."""

    criterion: object
    macs_reduction: float
    widths: str
    options: frozenset


def parse(name):
    """Reads the name of a variant.

    Raises:
        ValueError: for one that is not written criterion-macs<percent>-every|first|sensitive, with or without
            -nodistill, -soft, -cutout, -cutmix, -long, or for soft pruning by distribution fitting.
    """
    from tfcompress import criteria

    base, options = filters.split_options(name)
    match = re.fullmatch(rf"(\w+)-macs({filters.PERCENT})-({'|'.join(WIDTHS)})", base)
    if not match or "iterative" in options:
        raise ValueError(
            f"a variant is written criterion-macs<percent>-every, -first or -sensitive, with -nodistill behind it if "
            f"labels alone fine-tune it, -soft for soft pruning, -cutout or -cutmix for other images and -long for "
            f"three times the epochs, in this order (l2-macs62-every), percents from 01 to 99. Received: {name!r}"
        )
    criterion, percent, widths = match.groups()
    fit, _, method = criterion.rpartition("_")
    if fit == "distribution_fit" and method in METHODS:
        criterion = criteria.DistributionFit(METHODS[method])
    criterion = criteria.get(criterion)
    if "soft" in options and isinstance(criterion, criteria.DistributionFit):
        raise ValueError(
            f"{name}: distribution fitting keeps filters that soft pruning has just zeroed, in the place of others"
        )
    return Pruning(criterion, int(percent) / 100, widths, options)


def cut(model):
    """The percentage of the MACs that all criteria are compared at."""
    return CUT.get(model, 50)


def default_variants(model):
    """The variants of a network at its published cut, and for ResNet110 those beyond it."""
    names = tuple(name.format(cut(model)) for name in VARIANTS)
    return (*names, *BEYOND) if model == "resnet110" else names


PROFILES = {
    "smoke": Config(
        model="resnet8",
        dataset="digits",
        train_images=512,
        baseline_epochs=2,
        finetune_epochs=1,
        qat_epochs=1,
        variants=("distribution_fit_a-macs50-every",),
    ),
    "quick": Config(
        model="resnet20",
        train_images=10000,
        baseline_epochs=12,
        finetune_epochs=4,
        qat_epochs=1,
        variants=("distribution_fit_a-macs54-every", "l2-macs54-every"),
    ),
    "full": Config(model="resnet110"),
}


def run(task):
    """Runs all stages; every one resumes where it was interrupted."""
    from tfcompress.models import resnet
    from tfcompress.reporting import write_filter_norms

    config = task.config
    chosen = functools.partial(select, percent=cut(config.model))
    dataset, split = load_split(task, config.dataset, config.held_out, config.train_images, rgb=True)
    task.experiment = config.model if dataset == "cifar10" else f"{config.model}-{dataset}"
    depth, classes = int(config.model.removeprefix("resnet")), int(split.train[1].max()) + 1
    unpruned = filters.baseline(task, lambda: resnet(depth, classes), split)
    variants = [measure.export(task, "float32", unpruned, unpruned, "float32")]
    networks = {"float32": unpruned}

    def keep(record):
        _ship(task, networks, record(task, dataset, split, variants, chosen))

    names = config.variants or default_variants(config.model)
    kept = {name: filters.from_results(task, name) for name in names}
    keep(measure.record_so_far)
    untrained = [name for name in names if not kept[name]]
    sensitive = [pruning for pruning in map(parse, untrained) if pruning.widths == "sensitive"]
    if sensitive and config.jobs > 1:
        _budget(task, unpruned, split, sensitive[0])  # measures the layers, before several processes would
    filters.train_side_by_side(task, untrained, filters.to_quantize(config, names[:1]))
    for name in names:
        keep(measure.record_so_far)
        pruning = parse(name)
        model, plan = kept[name] or filters.prune_and_finetune(
            task,
            name,
            unpruned,
            split,
            pruning.criterion,
            pruning.options,
            **_budget(task, unpruned, split, pruning),
        )
        networks[name] = model
        papers = macs_cut_papers(unpruned, plan)
        variants.append(measure.export(task, name, model, model, "float32", macs_cut_papers=papers))
    for name in filters.to_quantize(config, list(networks)[:2]):
        keep(measure.record_so_far)
        variants.append(filters.quantize(task, name, networks[name], unpruned, split))
    keep(measure.record)
    write_filter_norms(norms(unpruned, _plans(task)), task.result_directory)
    task.close()


def _budget(task, unpruned, split, pruning):
    """Which layers a variant narrows, and by how much: arguments of `prune_channels`."""
    from tfcompress import criteria

    skip = () if pruning.widths == "every" else streams(unpruned)
    if pruning.widths != "sensitive":
        return {"macs_reduction": pruning.macs_reduction, "skip": skip}
    criterion = criteria.DistributionFit(METHODS["a"])
    ratios = filters.sensitive_ratios(task, unpruned, split, criterion, pruning.macs_reduction, skip)
    return {"ratios": ratios, "skip": skip}


def _ship(task, networks, selected):
    """Keeps the selected network, and no other, in the results: to start from with --from_results."""
    if selected is None:
        return
    for path in task.result_directory.glob("*.keras"):
        if path.stem != selected.variant:
            path.unlink(missing_ok=True)
    if selected.variant in networks:
        filters.ship(task, selected.variant, networks[selected.variant])


def _plans(task):
    """{variant: plan} of all variants in the record."""
    from tfcompress import PruningPlan

    paths = [(name, task.result_directory / f"{name}.plan.json") for name in measure.recorded_variants(task)]
    return {name: PruningPlan.from_json(path.read_text()) for name, path in paths if path.exists()}


def streams(model):
    """The layers that write the residual stream: the stem and the last convolution of each block."""
    return tuple(layer.name for layer in model.layers if re.search("^conv1$|_conv2$|_shortcut$", layer.name))


def macs_cut_papers(unpruned, plan):
    """The MACs cut of a plan for a network, as SFP and FPGM count it.

    They count the filters removed from the first convolution of a block as removed from the second one too, which then
    reads and writes fewer channels, while the residual stream stays wide. The first block reads the stem, which is
    counted as cut like it. A rate of 40 % is 52.3 % of ResNet110's MACs in this count.
    """
    from tfcompress import profile

    def share(layer):
        block = re.match(r"(stage\d+_block\d+)_conv([12])$", layer)
        first = f"{block[1]}_conv1" if block else "stage1_block1_conv1"
        kept = len(plan.kept[first]) / plan.widths[first]
        if block:
            return kept**2 if block[2] == "2" or block[1] == "stage1_block1" else kept
        return kept if layer == "conv1" else 1

    macs = {layer.name: layer.macs for layer in profile(unpruned).layers}
    return 1 - sum(count * share(layer) for layer, count in macs.items()) / sum(macs.values())


def norms(unpruned, plans):
    """L2 norms of the filters of every stage's first convolutions over the mean of their layer: all, and those kept."""
    stages = {}
    for layer in unpruned.layers:
        block = re.match(r"(stage\d)_block\d+_conv1$", layer.name)
        if not block:
            continue
        lengths = np.linalg.norm(np.asarray(layer.kernel).reshape(-1, layer.filters), axis=0)
        lengths /= lengths.mean()
        stage = stages.setdefault(f"{block[1]}, first convolutions", {"before": []})
        stage["before"] += lengths.tolist()
        for name, plan in plans.items():
            if name.endswith(WIDTHS):
                stage.setdefault(name, []).extend(lengths[plan.kept[layer.name]].tolist())
    return stages


def select(rows, percent):
    """Of the pruned float networks with so many percent fewer MACs, the one most like the baseline; or None.

    That is the smallest divergence on held-out images, or, where it was not measured, the best accuracy on them.
    """
    whole = next((row.macs for row in rows if row.variant == "float32"), 0)
    pruned = [row for row in rows if row.macs_cut_papers is not None and 100 * row.macs <= (100 - percent) * whole]
    if any(row.val_divergence is None for row in pruned):
        return max(pruned, key=lambda row: row.val_top1)
    return min(pruned, key=lambda row: row.val_divergence, default=None)


if __name__ == "__main__":
    runner.main("resnet", PROFILES, run)
