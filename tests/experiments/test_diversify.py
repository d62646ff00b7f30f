"""The diversity experiment: names, networks, published points, and all of it in seconds on digits."""

import csv
import json

import numpy as np
import pytest

import tfcompress as tfc
from experiments.diversify import (
    Config,
    default_variants,
    experiment,
    network,
    parse,
    prunable,
    similarities,
    whole,
)
from experiments.runner import Run
from tfcompress.models import load_model
from tfcompress.reporting import read_records
from tfcompress.surgery.thresholds import plan_by_thresholds


def test_names_of_variants():
    config = Config(model="vgg16", dataset="cifar100", thresholds=("0.5",))
    assert parse("diversity-b", config).cuts == (0.607, 0.375)
    assert parse("l1-params78.6-macs46", config).cuts == pytest.approx((0.786, 0.46))
    assert parse("random-a-nodistill", config).options == {"nodistill"}
    assert parse("diversity-b", config).options == frozenset()
    assert parse("l1-b-nodistill-iterative", config).options == {"nodistill", "iterative"}
    hidden = parse("diversity-b-cutout-long", Config(model="vgg16", baseline_cutout=8))
    assert hidden.options == {"cutout", "long"}
    assert parse("diversity-b-cutmix-long", config).options == {"cutmix", "long"}
    tau = parse("redundancy-tau0.54", config)
    assert (tau.criterion.name, tau.criterion.threshold, tau.cuts) == ("redundancy", 0.54, None)
    assert parse("geometric_median-given", config).cuts is None and config.thresholds == (0.5,)


def test_default_variants_compare_on_cifar10_only():
    names = default_variants(Config(model="vgg16"))
    assert names[:4] == ("diversity-a-cutmix-long", "diversity-b-cutmix-long", "diversity-b", "l1-b")
    assert names[-1] == "diversity-beyond-cutmix-long"
    names = default_variants(Config(model="vgg16", dataset="cifar100"))
    assert names == ("diversity-a-cutmix-long", "diversity-b-cutmix-long")
    assert default_variants(Config(model="resnet20", dataset="cifar100")) == ("diversity-a", "diversity-b")
    for dataset in ("cifar10", "cifar100"):
        config = Config(model="vgg16", dataset=dataset)
        for name in default_variants(config):
            parse(name, config)


@pytest.mark.parametrize(
    ("name", "params", "kept_whole"),
    [
        ("vgg16", 15_038_116, ["fc1"]),
        ("resnet20", 275_572, ["conv1", "stage1_block1_conv2"]),
        ("densenet40", 1_060_132, []),
        ("densenet-bc40", 188_092, []),
    ],
)
def test_networks_of_the_thesis(name, params, kept_whole):
    model = network(name, 100)
    assert tfc.profile(model).params == params
    assert list(whole(model))[:2] == kept_whole


def test_given_thresholds_are_another_configuration(tmp_path):
    def task(**options):
        return Run("vgg16", "full", 0, Config(model="vgg16", **options), "", tmp_path, tmp_path)

    assert task(variants=("diversity-a",)).directory == task().directory
    assert "thresholds" not in task().identity
    assert len({task(thresholds=thresholds).directory for thresholds in ((), (0.5,), (0.6,))}) == 3


def test_records_of_other_experiments_are_not_overwritten():
    assert experiment("vgg16", "cifar100") == "vgg16-cifar100"
    assert experiment("resnet20", "cifar10") == "resnet20-diversify-cifar10"


def test_similarities_put_the_kept_filters_first():
    model = network("resnet8", 10)
    nothing = plan_by_thresholds(model, dict.fromkeys(prunable(model), 1.0), skip=whole(model))
    assert similarities("b", model, model, nothing) == {}
    pruned, plan = tfc.prune_channels(model, "diversity", ratio=0.5, skip=whole(model))
    pictures = similarities("b", model, pruned, plan)
    assert list(pictures) == [f"b, stage{stage}_block1_conv1" for stage in (1, 2, 3)]
    first = pictures["b, stage1_block1_conv1"]  # reads what was not pruned: its kernels are those of before
    np.testing.assert_allclose(first["before"][:8, :8], first["after"], atol=1e-6)
    assert first["before"].shape == (16, 16) and first["kept"] == 8


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, run_experiment):
    folder = tmp_path_factory.mktemp("smoke")
    done = run_experiment("diversify", folder, "--profile=smoke")
    assert done.returncode == 0, done.stderr
    return folder


def test_all_stages(smoke):
    (record,) = read_records(smoke / "results")
    assert (record.experiment, record.dataset) == ("resnet8-diversify-digits", "digits")
    rows = {row.variant: row for row in record.rows}
    assert list(rows) == ["float32", "diversity-b", "l1-b", "diversity-b-int8-qat"]
    narrow = rows["diversity-b"]
    assert 0.50 <= 1 - narrow.params / rows["float32"].params <= 0.53
    assert 0.50 <= 1 - narrow.macs / rows["float32"].macs <= 0.53
    assert (rows["l1-b"].params, rows["l1-b"].macs) == (narrow.params, narrow.macs)
    folder = smoke / "results" / "resnet8-diversify-digits" / "smoke-seed0"
    assert tfc.profile(load_model(folder / "diversity-b.keras")).params == narrow.params
    plan = tfc.PruningPlan.from_json((folder / "diversity-b.plan.json").read_text())
    with open(folder / "diversity-b.layers.csv", newline="") as file:
        layers = {row["layer"]: row for row in csv.DictReader(file)}
    assert {name: int(row["kept"]) for name, row in layers.items()} == {k: len(v) for k, v in plan.kept.items()}
    assert [name for name, row in layers.items() if row["threshold"]] == [
        f"stage{stage}_block1_conv1" for stage in (1, 2, 3)
    ]
    pictures = json.loads((folder / "similarities.json").read_text())
    assert len(pictures) == 3 and all(np.max(picture["before"]) == 100 for picture in pictures.values())


@pytest.mark.slow
def test_recorded_thresholds_given_again_make_the_same_network(smoke, run_experiment):
    folder = smoke / "results" / "resnet8-diversify-digits"
    with open(folder / "smoke-seed0" / "diversity-b.layers.csv", newline="") as file:
        thresholds = [row["threshold"] for row in csv.DictReader(file) if row["threshold"]]
    again = run_experiment(
        "diversify",
        smoke,
        "--profile=smoke",
        "--seed=1",
        "--variants=diversity-given",
        f"--thresholds={','.join(thresholds)}",
        f"--baseline={folder / 'baseline-smoke-seed0.npz'}",
    )
    assert again.returncode == 0, again.stderr
    solved, given = (
        json.loads((folder / f"smoke-seed{seed}" / f"diversity-{name}.plan.json").read_text())["kept"]
        for seed, name in ((0, "b"), (1, "given"))
    )
    assert solved == given


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "vgg19"}, "model must be vgg16"),
        ({"variants": ("diversity-c",)}, "with a point of a, b, beyond, given"),
        ({"dataset": "cifar100", "variants": ("diversity-beyond",)}, "with a point of a, b, given"),
        ({"variants": ("l1-given",)}, "needs --thresholds"),
        ({"variants": ("l1-params150-macs50",)}, "between 0 and 100"),
        ({"variants": ("l1-tau0.5",)}, "only diversity and redundancy"),
        ({"variants": ("diversity-b-soft",)}, "with a point of a, b, beyond, given"),
        ({"variants": ("diversity-tau0.5-iterative",)}, "only cuts are spread over steps"),
        ({"variants": ("diversity-b-iterative",), "finetune_epochs": 3}, "at least 4 finetune_epochs. Received: 3"),
        ({"quantized": ("l3-b",)}, "geometric_median"),
        ({"quantized": ("diversity-b",), "variants": ("diversity-a",)}, "among the variants, diversity-a"),
        ({"thresholds": (1.5,)}, "cosines in"),
        ({"baseline": "a.npz", "train_baseline": True}, "Received: both, baseline='a.npz'"),
    ],
)
def test_bad_configurations_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**{"model": "vgg16", **fields})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--variants=diversity-given", "--thresholds=0.1,0.2"], "resnet8 has 3 layers to prune: stage1_block1_conv1"),
        (["--baseline=nowhere.keras"], "nowhere.keras is no baseline of this resnet8"),
    ],
)
@pytest.mark.slow
def test_bad_flags_are_refused_before_anything_trains(tmp_path, run_experiment, flags, message):
    done = run_experiment("diversify", tmp_path, "--profile=smoke", *flags)
    assert done.returncode != 0 and message in done.stderr and "epoch" not in done.stdout
