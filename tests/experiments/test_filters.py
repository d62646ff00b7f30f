"""A fine-tuning starts where it started, wherever it is resumed."""

import dataclasses

import numpy as np
import pytest

import tfcompress as tfc
from experiments import filters
from experiments.mobilenet import PROFILES
from experiments.resnet import Config, streams
from experiments.runner import Run, Split
from tfcompress.criteria import Random
from tfcompress.models import deepen, lenet5, resnet


def test_shipped_baseline_is_taken_as_it_was_trained():
    config = PROFILES["full"]
    notes = {"training": {"epochs": 60, "weight_decay": 5e-3}}  # of before images and cutout could be chosen
    assert filters._as_trained("b.npz", notes, config, ()) == config
    assert filters._as_trained("b.npz", {**notes, "train_images": 0, "held_out": 2500}, config, ()) == config
    grown = {"training": {"epochs": 40, "weight_decay": 1e-3, "cutout": 8}, "grown_from": "a.npz"}
    adopted = filters._as_trained("b.npz", grown, config, ("baseline_cutout",) if config.baseline_cutout == 8 else ())
    assert (adopted.baseline_epochs, adopted.baseline_weight_decay) == (40, 1e-3)
    assert (adopted.baseline_cutout, adopted.baseline_grown_from) == (8, "a.npz")


def test_shipped_baseline_of_another_training_is_refused():
    config = PROFILES["full"]
    notes = {"training": {"epochs": 60, "weight_decay": 5e-3}}
    given = dataclasses.replace(config, baseline_epochs=61, train_images=1000)
    expected = r"train_images 0, now 1000\. .* --train_images=0; --train_baseline"
    with pytest.raises(SystemExit, match=expected):
        filters._as_trained("b.npz", notes, given, ())
    with pytest.raises(SystemExit, match=r"training: epochs 60, now 61, train_images 0, now 1000\. .*_epochs=60 "):
        filters._as_trained("b.npz", notes, given, ("baseline_epochs", "train_images"))
    with pytest.raises(SystemExit, match=r"grown_from a\.npz, now c\.npz"):
        other = dataclasses.replace(config, baseline_grown_from="c.npz")
        filters._as_trained("b.npz", {**notes, "grown_from": "a.npz"}, other, ("baseline_grown_from",))
    # What the pruned networks depend on too is never taken from a baseline.
    with pytest.raises(SystemExit, match="precision mixed_bfloat16, now float32"):
        filters._as_trained("b.npz", notes, dataclasses.replace(config, precision="float32"), ())
    with pytest.raises(SystemExit, match="held_out 99, now 2500"):
        filters._as_trained("b.npz", {**notes, "held_out": 99}, config, ())


def test_baseline_grows_from_a_shallower_one(tmp_path, rng):
    shallow, model = resnet(14), resnet(26)
    filters._save_float16(shallow, tmp_path / "b.npz", {})
    filters.load_weights(shallow, tmp_path / "b.npz")
    filters._grow(model, str(tmp_path / "b.npz"), rng.integers(0, 256, (256, 32, 32, 3), "uint8"))
    expected = deepen(shallow, 26)
    for new, old in zip(model.weights, expected.weights, strict=True):
        if "moving" in new.path:
            assert not np.array_equal(new, old), new.path  # they are those of the images
        else:
            np.testing.assert_array_equal(new, old)
    for network, start, message in (
        (resnet(14), "b.npz", "larger depth"),
        (resnet(26, classes=3), "b.npz", r"no baseline of this resnet14"),
        (resnet(26), "missing.npz", "needs the .npz of a ResNet's baseline"),
        (lenet5(), "b.npz", "only ResNets grow"),
    ):
        with pytest.raises(SystemExit, match=message):
            filters._grow(network, str(tmp_path / start), None)


def test_networks_to_quantize():
    config = Config(model="resnet20", variants=("l2-macs54-every",))
    assert filters.to_quantize(config, ["float32"]) == ["float32"]
    for names, expected in ((("l2-macs54-every",), ("l2-macs54-every",)), (("nothing",), ())):
        assert filters.to_quantize(dataclasses.replace(config, quantized=names), ["float32"]) == expected
    with pytest.raises(ValueError, match=r"among the variants, l2-macs54-every\. Received: \['nothing'\]"):
        dataclasses.replace(config, quantized=("float32", "nothing"))


def test_weights_of_another_width_are_refused(tmp_path):
    filters._save_float16(resnet(8), tmp_path / "b.npz", {})
    assert filters.load_weights(resnet(8), tmp_path / "b.npz") == {}
    with pytest.raises(SystemExit, match=r"b\.npz is no baseline of this resnet14"):
        filters.load_weights(resnet(14), tmp_path / "b.npz")


def test_random_filters_differ_with_the_seed(tmp_path, monkeypatch):
    drawn = []

    def pruned(unpruned, criterion, *_):
        drawn.append(criterion.seed)
        raise InterruptedError

    monkeypatch.setattr(filters, "_pruned", pruned)
    split = Split((np.zeros((1, 32, 32, 3), "uint8"), np.zeros(1, int)), None, None)
    for seed, criterion in ((0, "random"), (3, "random"), (4, Random())):
        task = Run("resnet8", "smoke", seed, PROFILES["smoke"], "", tmp_path / "runs", tmp_path / "results")
        with pytest.raises(InterruptedError):
            filters.prune_and_finetune(task, "random-macs50-every", resnet(8), split, criterion, distill=False)
    assert drawn == [0, 3, 4]


def test_pruned_network_is_computed_once(tmp_path, rng, monkeypatch):
    unpruned, images = resnet(8), rng.random((64, 32, 32, 3), dtype="float32")
    budget = {"macs_reduction": 0.5}
    first, plan = filters._pruned(unpruned, "l2", budget, images, tmp_path)

    def again(*_, **__):
        raise AssertionError("pruned again")

    monkeypatch.setattr("tfcompress.surgery.prune_channels", again)
    monkeypatch.setattr("tfcompress.prune_channels", again, raising=False)
    second, same_plan = filters._pruned(unpruned, "l2", budget, images, tmp_path)
    assert same_plan.to_json() == plan.to_json() and 0.5 <= plan.macs_reduction < 0.6
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    unpruned.layers[1].set_weights([2 * w for w in unpruned.layers[1].get_weights()])
    for other in (budget, {"macs_reduction": 0.6}):
        with pytest.raises(AssertionError, match="pruned again"):
            filters._pruned(unpruned, "l2", other, images, tmp_path)


def test_steps_remove_equal_shares_and_end_at_the_widths_of_one():
    unpruned = resnet(8)
    layers = [f"stage{stage}_block1_conv1" for stage in (1, 2, 3)]  # 16, 32 and 64 filters
    ratios = dict(zip(layers, (0.9, 0.55, 0.0)))
    steps = filters._shares(unpruned, 4, 10, ratios=ratios, skip=streams(unpruned))
    assert [epochs for _, epochs in steps] == [2, 3, 2, 3]
    widths = [[16, 32, 64]]
    for shares, _ in steps:
        widths.append([round(width * (1 - shares[layer]), 6) for width, layer in zip(widths[-1], layers)])
    assert widths[1:] == [[9, 26, 64], [5, 21, 64], [3, 18, 64], [2, 14, 64]]
    # 7.5 of 16 filters would stay: 7 do, in one step and in two.
    _, plan = tfc.prune_channels(unpruned, "l1", ratios={layers[0]: 0.53125})
    (first, _), (second, _) = filters._shares(unpruned, 2, 2, ratios={layers[0]: 0.53125}, skip=streams(unpruned))
    assert len(plan.kept[layers[0]]) == 7 == round(16 * (1 - first[layers[0]]) * (1 - second[layers[0]]), 6)


def test_pruning_in_steps(tmp_path, rng, capsys):
    images, labels = rng.integers(0, 256, (64, 32, 32, 3), "uint8"), rng.integers(0, 10, 64)
    split = Split((images, labels), (images[:8], labels[:8]), None)
    config = dataclasses.replace(PROFILES["smoke"], finetune_epochs=3, precision="float32")
    task = Run("resnet8", "smoke", 0, config, "", tmp_path / "runs", tmp_path / "results")
    unpruned = resnet(8)
    skip, ratios = streams(unpruned), dict.fromkeys([f"stage{stage}_block1_conv1" for stage in (1, 2, 3)], 0.5)

    def pruned(name, steps):
        return filters.prune_and_finetune(
            task, name, unpruned, split, "l1", distill=False, steps=steps, skip=skip, ratios=ratios
        )

    (once, _), (model, plan) = pruned("once", 1), pruned("steps", 3)
    assert tfc.profile(model) == tfc.profile(once)
    assert [len(plan.kept[layer]) for layer in ratios] == [8, 16, 32]
    assert tfc.profile(tfc.apply_plan(unpruned, plan)) == tfc.profile(model)
    assert capsys.readouterr().out.count("epoch 1/1") == 3
    again, same = pruned("steps", 3)
    assert "epoch" not in capsys.readouterr().out and same.to_json() == plan.to_json()
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
