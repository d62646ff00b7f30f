"""A fine-tuning starts where it started, wherever it is resumed."""

import dataclasses
import os
import sys
import zipfile

import numpy as np
import pytest

import tfcompress as tfc
from experiments import filters
from experiments.mobilenet import PROFILES
from experiments.resnet import Config, streams
from experiments.runner import Run, Split
from tfcompress.criteria import Random
from tfcompress.models import deepen, lenet5, load_model, resnet


def _task(folder, given=(), command="run --variants=l2-macs54-every", **options):
    return Run("resnet20", "full", 0, Config(model="resnet20", **options), command, folder, folder, given)


def _ship(model, path, notes):
    filters._save_packed(filters._pack(model.get_weights()), path, notes)


def test_runs_from_other_weights_have_other_folders(tmp_path):
    tasks = [dataclasses.replace(_task(tmp_path), baseline=digest) for digest in ("", "aa", "bb", "bb")]
    assert len({task.directory for task in tasks}) == 3


def test_network_is_put_into_the_results_once(tmp_path, monkeypatch):
    save, saved = filters.save_model, []
    monkeypatch.setattr(filters, "save_model", lambda *arguments: saved.append(save(*arguments)))
    task, name, network = _task(tmp_path), "l2-macs54-every", resnet(8)
    task.seconds[name] = 1.0
    task.directory.mkdir(parents=True)
    path = task.result_directory / f"{name}.keras"
    filters.ship(task, name, network)
    first = path.read_bytes()
    filters.ship(task, name, network)
    assert len(saved) == 1
    network.get_layer("logits").bias.assign(np.ones(10))
    filters.ship(task, name, network)
    np.testing.assert_array_equal(load_model(path).get_layer("logits").bias, np.ones(10))
    path.write_bytes(first[:-100])
    filters.ship(task, name, network)
    np.testing.assert_array_equal(load_model(path).get_layer("logits").bias, np.ones(10))


def test_baseline_is_taken_as_it_was_trained(tmp_path):
    notes = {"training": {"epochs": 60, "weight_decay": 5e-3}}  # of before images and cutout could be chosen
    same = ("train_images", "held_out", "precision")
    for more in ({}, {"train_images": 0, "held_out": 2500, "images": "aa"}):
        task = _task(tmp_path)
        filters._adopt_training(task, "b.npz", {**notes, **more}, same)
        assert task.config == Config(model="resnet20") and task.command == "run --variants=l2-macs54-every"
    grown = {"training": {"epochs": 40, "weight_decay": 1e-3, "cutout": 8}, "grown_from": "a.npz"}
    command = "run --baseline_cutout=8 --variants=l2-macs54-every"
    task = _task(tmp_path, ("baseline_cutout", "variants"), command, baseline_cutout=8)
    filters._adopt_training(task, "b.npz", grown, same)
    assert (task.config.baseline_epochs, task.config.baseline_weight_decay) == (40, 1e-3)
    assert (task.config.baseline_cutout, task.config.baseline_grown_from) == (8, "a.npz")
    # The command that trains the same elsewhere, with its flags in the order of every command.
    assert task.command == (
        "run --baseline_epochs=40 --baseline_cutout=8 --baseline_weight_decay=0.001 --baseline_grown_from=a.npz "
        "--variants=l2-macs54-every"
    )


@pytest.mark.parametrize(
    ("options", "given", "notes", "message"),
    [
        ({"train_images": 9}, (), {}, r"training: train_images 0, now 9\. To start from it: --train_images=0$"),
        ({"baseline_epochs": 61}, ("baseline_epochs",), {}, r"epochs 60, now 61\. .*: --baseline_epochs=60$"),
        ({"baseline_grown_from": "./c.npz"}, ("baseline_grown_from",), {"grown_from": "a.npz"}, r"a\.npz, now c\.npz"),
        # What the pruned networks depend on too is never taken from a baseline.
        ({"precision": "float32"}, (), {}, "precision mixed_bfloat16, now float32"),
        ({}, (), {"held_out": 99}, "held_out 99, now 2500"),
    ],
)
def test_baseline_of_another_training_is_refused(tmp_path, options, given, notes, message):
    task = _task(tmp_path, given, **options)
    notes = {"training": {"epochs": 60, "weight_decay": 5e-3}, **notes}
    with pytest.raises(SystemExit, match=message):
        filters._adopt_training(task, "b.npz", notes, ("train_images", "held_out", "precision"))


def test_baseline_grows_is_shipped_and_taken_from_there(tmp_path, rng, monkeypatch):
    def fit(model, *_, directory, **__):
        trained.append((directory.name, model.get_weights()))
        return [{"seconds": 2.0}]

    trained, images = [], rng.integers(0, 256, (16, 32, 32, 3), "uint8")
    monkeypatch.setattr("tfcompress.training.fit", fit)
    monkeypatch.setattr("tfcompress.training.accuracy", lambda *_: 0.5)
    split = Split((images, np.zeros(16, int)), (images, np.zeros(16, int)), None)
    shallow = resnet(14)
    _ship(shallow, tmp_path / "b.npz", {})
    filters.load_weights(shallow, tmp_path / "b.npz")
    start = str(tmp_path / "b.npz")
    options = {"baseline_cutout": 8, "baseline_cutmix": 0.25, "baseline_epochs": 40, "baseline_grown_from": start}
    filters.baseline(_task(tmp_path, **options), lambda: resnet(20), split)
    ((folder, weights),) = trained
    assert folder.startswith("resnet20-full-baseline0-40epochs-cutout8-decay0.005-cutmix0.25-grown")
    for new, old in zip(weights, deepen(shallow, 20).get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    # Another run starts from it, and its configuration is that of the first, but for the folder of this machine. It
    # hides squares because the baseline did.
    task = _task(tmp_path, variants=("l2-macs54-every-cutout",))
    filters.baseline(task, lambda: resnet(20), split)
    assert len(trained) == 1 and task.seconds == {"baseline": 2.0}
    assert task.identity == {**_task(tmp_path, **options).identity, "baseline_grown_from": "b.npz"}
    # The command that trained it finds it as it wants it.
    filters.baseline(_task(tmp_path, tuple(options), **options), lambda: resnet(20), split)
    # So does one of other results; what is held out must not have been trained on.
    other = _task(tmp_path / "other", variants=task.config.variants)
    filters.baseline(other, lambda: resnet(20), split, tmp_path / "resnet20" / "baseline-full-seed0.npz")
    assert other.config == task.config
    with pytest.raises(SystemExit, match="held_out 2500, now 99"):
        filters.baseline(_task(tmp_path, held_out=99), lambda: resnet(20), split)
    plain = _task(tmp_path / "plain", variants=task.config.variants)
    with pytest.raises(SystemExit, match="l2-macs54-every-cutout needs --baseline_cutout"):
        filters.baseline(plain, lambda: resnet(20), split)
    assert len(trained) == 1
    # Directories from before CutMix could be chosen keep their names.
    assert "baseline_cutmix" not in _task(tmp_path).identity
    with pytest.raises(ValueError, match=r"baseline_cutmix must be in \[0, 1\]. Received: 1.5"):
        _task(tmp_path, baseline_cutmix=1.5)


def test_large_baselines_are_kept_in_few_bits(tmp_path, rng, monkeypatch):
    kernel, bias = rng.normal(size=(3, 3, 256, 128)).astype("float32"), rng.normal(size=128).astype("float32")
    kernel *= np.geomspace(1e-3, 1e3, 128, dtype="float32")
    kernel[..., 7] = 0
    kernel[..., 8], kernel[..., 9] = 0.5, np.eye(1, 9 * 256).reshape(3, 3, 256)
    monkeypatch.setattr(filters, "LARGEST_SHIPPED", 2 * (kernel.size + bias.size) - 1)
    packed = filters._pack([kernel, bias])
    filters._save_packed(packed, tmp_path / "b.npz", {})
    assert (tmp_path / "b.npz").stat().st_size < 5.25 / 8 * kernel.size
    with np.load(tmp_path / "b.npz") as stored:
        rounded, same = filters._unpack(stored)
    np.testing.assert_array_equal(same, bias.astype("float16"))
    np.testing.assert_array_equal(rounded, filters._unpack(packed)[0])
    assert not rounded[..., 7].any()
    np.testing.assert_allclose(rounded[..., 8:10], kernel[..., 8:10], rtol=1e-6)
    noise, signal = ((x**2).mean(axis=(0, 1, 2))[np.arange(128) > 9] for x in (rounded - kernel, kernel))
    np.testing.assert_allclose(10 * np.log10(signal / noise), 28.9, atol=0.5)  # 8 sqrt(12), in dB
    monkeypatch.undo()
    np.testing.assert_array_equal(filters._unpack(filters._pack([kernel]))[0], kernel.astype("float16"))


def test_baseline_that_nothing_can_grow_from_is_refused(tmp_path, rng):
    images = rng.integers(0, 256, (16, 32, 32, 3), "uint8")
    split = Split((images, None), None, None)
    _ship(resnet(14), tmp_path / "resnet14.npz", {})
    _ship(resnet(14), tmp_path / "seen.npz", {"held_out": 99, "images": "aa"})
    _ship(lenet5(), tmp_path / "lenet.npz", {})
    (tmp_path / "cut.npz").write_bytes((tmp_path / "resnet14.npz").read_bytes()[:1000])
    np.savez(tmp_path / "weights.npz", *(weights for weights in resnet(14).get_weights()))
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as file:
        file.writestr("config.json", "{}")
    for name, model, message in (
        ("resnet14.npz", resnet(14), "larger depth"),
        ("resnet14.npz", resnet(20, classes=3), "no baseline of this resnet14"),
        ("seen.npz", resnet(20), r"other images: held_out 99, now 2500, images aa, now \w{16}$"),
        ("lenet.npz", resnet(20), "needs the .npz of a ResNet's baseline: .*depth must be 6n"),
        ("cut.npz", resnet(20), "needs the .npz of a ResNet's baseline"),
        ("model.keras", resnet(20), "needs the .npz of a ResNet's baseline"),
        ("missing.npz", resnet(20), "needs the .npz of a ResNet's baseline"),
        ("weights.npz", resnet(20), "no baseline of this resnet14"),
    ):
        with pytest.raises(SystemExit, match=message):
            filters._grow(_task(tmp_path, baseline_grown_from=str(tmp_path / name)), model, split)
    with pytest.raises(ValueError, match=r"baseline_grown_from is for ResNets\. Received: model=mobilenet"):
        dataclasses.replace(PROFILES["full"], baseline_grown_from="b.npz")


def test_finetuning_takes_each_option(tmp_path):
    task = _task(tmp_path, baseline_cutout=6)
    plain = filters.finetuning(task)
    assert (plain.epochs, plain.cutout, plain.cutmix) == (20, 0, 0)
    for option, field, value in (("cutout", "cutout", 6), ("cutmix", "cutmix", 0.5), ("long", "epochs", 60)):
        assert filters.finetuning(task, {option}) == dataclasses.replace(plain, **{field: value})


def test_networks_to_quantize():
    config = Config(model="resnet20", variants=("l2-macs54-every",))
    assert filters.to_quantize(config, ["float32"]) == ["float32"]
    for names, expected in ((("l2-macs54-every",), ("l2-macs54-every",)), (("nothing",), ())):
        assert filters.to_quantize(dataclasses.replace(config, quantized=names), ["float32"]) == expected
    with pytest.raises(ValueError, match=r"nothing stands alone\. Received: float32, nothing"):
        dataclasses.replace(config, quantized=("float32", "nothing"))


def test_weights_of_another_width_are_refused(tmp_path):
    _ship(resnet(8), tmp_path / "b.npz", {})
    assert filters.load_weights(resnet(8), tmp_path / "b.npz") == {}
    with pytest.raises(SystemExit, match=r"b\.npz is no baseline of this resnet14"):
        filters.load_weights(resnet(14), tmp_path / "b.npz")
    broken = bytearray((tmp_path / "b.npz").read_bytes())
    broken[5000:5100] = bytes(100)
    (tmp_path / "b.npz").write_bytes(broken)
    with pytest.raises(SystemExit, match=r"b\.npz is no baseline of this resnet8: "):
        filters.load_weights(resnet(8), tmp_path / "b.npz")


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
            filters.prune_and_finetune(task, "random-macs50-every", resnet(8), split, criterion, {"nodistill"})
    assert drawn == [0, 3, 4]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux gives processes their own cores")
def test_networks_are_trained_side_by_side(tmp_path, monkeypatch, capsys):
    script = "import os, sys; print(*sys.argv[1:], *sorted(os.sched_getaffinity(0))); sys.exit('fails' in sys.argv[1])"
    monkeypatch.setattr(filters, "_command", lambda task: [sys.executable, "-c", script])
    cores = sorted(os.sched_getaffinity(0))
    names = ["a-macs50-first", "b-macs50-first", "fails-macs50-first", "done-macs50-first"]

    def trained(jobs):
        task = _task(tmp_path, jobs=jobs)
        (task.directory / names[-1]).mkdir(parents=True, exist_ok=True)
        (task.directory / names[-1] / "seconds.json").write_text("9")
        filters.train_side_by_side(task, names, names[:1])
        return capsys.readouterr()

    assert trained(1).out == ""
    out, err = trained(2)
    lines = dict(line.split(": ", 1) for line in out.splitlines() if ": -" in line)
    assert set(lines) == set(names[:3])
    for name, line in lines.items():
        variant, quantized, jobs, baseline, *given = line.split()
        assert (variant, jobs, baseline) == (f"--variants={name}", "--jobs=1", "--notrain_baseline")
        assert quantized == ("--quantized=a-macs50-first" if name == names[0] else "--quantized=nothing")
        assert 0 < len(given) <= -(-len(cores) // 2) and set(map(int, given)) <= set(cores)
    assert err == "fails-macs50-first: exit status 1\n"
    assert sorted(os.sched_getaffinity(0)) == cores


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


def test_sensitive_layers_are_spared_by_all_criteria_alike(tmp_path, rng, capsys):
    """A block whose first convolution feeds nothing loses most; the measurements are kept for the next criterion."""
    model = resnet(8)
    for layer in model.layers:
        if layer.name == "stage2_block1_conv2":
            layer.kernel.assign(np.zeros(layer.kernel.shape))
        elif layer.name.endswith("_bn"):
            layer.moving_mean.assign(rng.uniform(-0.1, 0.1, layer.moving_mean.shape))
    held_out = rng.random((64, 32, 32, 3), "float32"), rng.integers(0, 10, 64)
    task, another = _task(tmp_path), _task(tmp_path)
    arguments = model, Split(None, held_out, None), tfc.criteria.get("l2"), 0.3, streams(model)
    ratios = filters.sensitive_ratios(task, *arguments)
    assert capsys.readouterr().out.count("measuring") == 1
    assert ratios["stage2_block1_conv1"] == 1 - 3 / 32 > 2 * ratios.get("stage1_block1_conv1", 0)
    assert ratios.keys() <= {f"stage{stage}_block1_conv1" for stage in (1, 2, 3)}
    plans = [tfc.plan_pruning(model, name, ratios=ratios, skip=streams(model)) for name in ("l2", "geometric_median")]
    assert plans[0].after == plans[1].after and 0.3 <= plans[0].macs_reduction <= 0.31
    assert filters.sensitive_ratios(another, *arguments) == ratios
    assert "measuring" not in capsys.readouterr().out
    # What the record says of the time is that of the measurement.
    assert task.seconds.keys() == {"sensitivity"} and another.seconds == {}
    (kept,) = tmp_path.rglob("sensitivity-full-seed0.json")
    for damaged in (kept.read_text()[:99], kept.read_text().replace('"of": "', '"of": "0')):
        kept.write_text(damaged)
        assert filters.sensitive_ratios(another, *arguments) == ratios
        assert "measuring" in capsys.readouterr().out


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


def test_pruning_in_steps(tmp_path, rng, capsys, monkeypatch):
    monkeypatch.setattr(filters, "STEPS", 3)
    images, labels = rng.integers(0, 256, (64, 32, 32, 3), "uint8"), rng.integers(0, 10, 64)
    split = Split((images, labels), (images[:8], labels[:8]), None)
    config = dataclasses.replace(PROFILES["smoke"], finetune_epochs=3, precision="float32")
    task = Run("resnet8", "smoke", 0, config, "", tmp_path / "runs", tmp_path / "results")
    unpruned = resnet(8)
    skip, ratios = streams(unpruned), dict.fromkeys([f"stage{stage}_block1_conv1" for stage in (1, 2, 3)], 0.5)

    def pruned(name, *options):
        options = {"nodistill", *options}
        return filters.prune_and_finetune(task, name, unpruned, split, "l1", options, skip=skip, ratios=ratios)

    (once, _), (model, plan) = pruned("once"), pruned("steps", "iterative")
    assert tfc.profile(model) == tfc.profile(once)
    assert [len(plan.kept[layer]) for layer in ratios] == [8, 16, 32]
    assert tfc.profile(tfc.apply_plan(unpruned, plan)) == tfc.profile(model)
    assert capsys.readouterr().out.count("epoch 1/1") == 3
    again, same = pruned("steps", "iterative")
    assert "epoch" not in capsys.readouterr().out and same.to_json() == plan.to_json()
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
