"""The whole way on digits, by the Python call and by the command."""

import contextlib
import dataclasses
import json
import re
import resource
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.cli import main
from tfcompress.compression.compress import better_scaling, calibration_images, compress, input_range, plan
from tfcompress.compression.recipe import load_recipe
from tfcompress.datasets import UserData
from tfcompress.datasets.arrays import as_float
from tfcompress.quantization.aware_training import quantize_wrap
from tfcompress.training.checkpoint import load_checkpoint, save_checkpoint

RECIPE = [
    {"prune": {"criterion": "l2", "params_reduction": 0.5}},
    {"finetune": {"epochs": 1, "optimizer": "adam", "learning_rate": 0.002, "distill": True}},
    {"sparsify": {"sparsity": 0.5, "epochs": 1, "optimizer": "adam", "learning_rate": 0.001}},
    {"qat": {"epochs": 1, "optimizer": "adam", "learning_rate": 0.0005, "preserve_sparsity": True, "distill": True}},
    {"export": {"precision": "int8"}},
]


@pytest.fixture(scope="module")
def model(digits):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1), name="image"),
            layers.Conv2D(12, 5, strides=2, activation="relu", name="conv1"),
            layers.Conv2D(16, 3, strides=2, activation="relu", name="conv2"),
            layers.Flatten(),
            layers.Dropout(0.25),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="small",
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(digits.x_train / np.float32(255), digits.y_train, epochs=12, batch_size=64, verbose=0)
    return model


@pytest.fixture(scope="module")
def data(digits):
    names = tuple(f"digit {i}" for i in range(10))
    held_out = (digits.x_train[:200], digits.y_train[:200])
    return UserData(
        (digits.x_train[200:], digits.y_train[200:]), held_out, (digits.x_test, digits.y_test), names, "0-1", "digits"
    )


@pytest.fixture(scope="module")
def done(model, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compressed") / "out"
    return compress(model, data, RECIPE, folder)


def test_folder_holds_what_the_summary_says(done, model, data, digits):
    names = {path.name for path in done.folder.iterdir()}
    assert names == {"labels.txt", "model.json", "model.keras", "model.tflite", "plan.json", "report.html", "steps"}
    summary = json.loads((done.folder / "model.json").read_text())
    assert summary == done.summary
    assert (done.folder / "labels.txt").read_text().splitlines()[3] == "digit 3"
    file, steps = summary["file"], summary["steps"]
    assert file["bytes"] == (done.folder / "model.tflite").stat().st_size == steps[-1]["bytes"]
    assert file["top1"] == tfc.evaluate_tflite(done.folder / "model.tflite", digits.x_test, digits.y_test)
    assert file["top1_of"] == "test" and file["top1"] > 0.8
    assert [step["name"] for step in steps] == ["original", "1-prune", "2-finetune", "3-sparsify", "4-qat"]
    assert [step["precision"] for step in steps] == ["float32"] * 4 + ["int8"]
    params = [step["params"] for step in steps]
    assert params[0] == model.count_params() and params[1] == params[-1] <= params[0] / 2
    assert summary["input"]["scale"] == pytest.approx(1 / 255) and summary["input"]["zero_point"] == -128
    assert summary["output"]["softmax"] and summary["output"]["scale"] == 1 / 256
    assert sum(layer["params_after"] for layer in summary["layers"]) == params[-1]


def test_float_model_is_a_plain_keras_model_with_the_zeros(done, data):
    loaded = keras.models.load_model(done.folder / "model.keras")
    probabilities = loaded.predict(data.validation[0][:20] / np.float32(255), verbose=0)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert tfc.sparsity_of(loaded) == pytest.approx(0.5, abs=0.02)
    dropout = next(layer for layer in loaded.layers if isinstance(layer, layers.Dropout))
    assert dropout.rate == pytest.approx(0.25 * (dropout.output.shape[-1] / (16 * 5 * 5)) ** 0.5)
    plan = tfc.PruningPlan.from_json((done.folder / "plan.json").read_text())
    assert loaded.get_layer("conv2").filters == len(plan.kept["conv2"])


def test_layers_that_cannot_be_shared_are_named_before_anything_is_trained(model, data, tmp_path):
    steps = [
        {"finetune": {"epochs": 1}},
        {"share": {"clusters": 8, "epochs": 1, "skip": ["conv3"]}},
        {"export": {"precision": "int8"}},
    ]
    with pytest.raises(ValueError, match=r"step 2: skip .*'conv3'"):
        compress(model, data, steps, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_values_that_are_shared_stay_so_in_int8(model, data, tmp_path):
    steps = [
        {"share": {"clusters": 8, "epochs": 1, "learning_rate": 0.01, "skip": ["conv1"]}},
        {"qat": {"epochs": 1, "optimizer": "adam", "learning_rate": 0.0005}},
        {"export": {"precision": "int8"}},
    ]
    done = compress(model, data, steps, tmp_path / "out")
    rows = done.summary["steps"]
    assert [row["title"] for row in rows[1:]] == ["8 values per layer", "int8, trained (QAT)"]
    values = {name: np.unique(done.model.get_layer(name).get_weights()[0]).size for name in ("conv1", "conv2")}
    assert values == {"conv1": 300, "conv2": 8}
    # 3 bits a weight; conv1, biases and the graph are the rest.
    assert rows[-1]["gzip_bytes"] < 0.65 * rows[-1]["bytes"]


def test_factorized_after_pruning(model, data, tmp_path):
    steps = [{"prune": {"ratio": 0.25}}, {"factorize": {"params_reduction": 0.4}}, {"export": {"precision": "float32"}}]
    pruned, low_rank = plan(model, load_recipe(steps))
    assert low_rank.before.params == pruned.after.params
    done = compress(model, data, steps, tmp_path / "out")
    thin = tfc.profile(done.model)
    assert thin.params == low_rank.after.params < 0.6 * tfc.profile(model).params
    rows = {row["name"]: row for row in done.summary["layers"]}
    assert sum(row["params_after"] for row in rows.values()) == thin.params
    assert sum(row["macs_after"] for row in rows.values()) == thin.macs
    parts = [layer.macs for layer in thin.layers if layer.name.startswith("conv2")]
    assert len(parts) == 2 and rows["conv2"]["macs_after"] == sum(parts)
    assert rows["conv2"]["channels_after"] == 12 == len(pruned.kept["conv2"])
    assert "full rank" in (done.folder / "steps" / "2-factorize" / "ranks.txt").read_text()


def test_layers_that_lose_little_are_pruned_first(model, data, tmp_path):
    """By the measurements of the run, which stay beside it; the dry run knows only the ratio."""
    prune = {"ratio": 0.25, "criterion": "l2", "scope": "sensitivity"}
    steps = [{"prune": prune}, {"export": {"precision": "float32"}}]
    (evenly,) = plan(model, load_recipe(steps))
    compress(model, data, steps, tmp_path / "out")
    measured = tfc.Sensitivity.from_json((tmp_path / "out" / "steps" / "1-prune" / "sensitivity.json").read_text())
    chosen = tfc.PruningPlan.from_json((tmp_path / "out" / "plan.json").read_text())
    expected = tfc.plan_pruning(model, "l2", ratio=0.25, scope=measured)
    widths = [{name: len(kept) for name, kept in each.kept.items()} for each in (chosen, expected, evenly)]
    assert widths[0] == widths[1] != widths[2]
    assert sum(widths[0].values()) == sum(widths[2].values()) == 9 + 12 + 10


def test_same_call_reads_the_results_back(done, model, data, capsys):
    again = compress(model, data, RECIPE, done.folder)
    assert "epoch" not in capsys.readouterr().out
    keep = ("name", "top1", "bytes", "seconds")
    assert [[step[key] for key in keep] for step in again.summary["steps"]] == [
        [step[key] for key in keep] for step in done.summary["steps"]
    ]


def test_run_goes_on_on_another_processor(done, model, data, capsys, monkeypatch):
    """It would find other last bits of statistics and of ranges, and maybe other filters."""
    from tfcompress.quantization import aware_training

    def calibrate(wrapped, *images, **options):
        original(wrapped, *images, **options)
        wrapped.set_weights([weights * np.float32(1 + 1e-6) for weights in wrapped.get_weights()])

    def prune_channels(model, **options):
        return original_prune(model, **{**options, "criterion": "random"})

    def recalibrate(*_, **__):
        raise AssertionError

    original, original_prune = aware_training.calibrate, tfc.prune_channels
    monkeypatch.setattr(aware_training, "calibrate", calibrate)
    monkeypatch.setattr("tfcompress.prune_channels", prune_channels)
    monkeypatch.setattr("tfcompress.recalibrate", recalibrate)
    before = done.file.path.read_bytes()
    compress(model, data, RECIPE, done.folder)
    assert "epoch" not in capsys.readouterr().out and done.file.path.read_bytes() == before
    monkeypatch.undo()
    (done.folder / "steps" / "1-prune" / "weights.npz").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"weights\.npz is damaged"):
        compress(model, data, RECIPE, done.folder)
    (done.folder / "steps" / "1-prune" / "weights.npz").unlink()
    compress(model, data, RECIPE, done.folder)


def test_another_run_is_refused(done, model, data, tmp_path):
    with pytest.raises(ValueError, match=r"holds another run \(another recipe\)"):
        compress(model, data, "safe", done.folder)
    (tmp_path / "letter.txt").write_text("dear diary")
    with pytest.raises(ValueError, match="not empty and no run"):
        compress(model, data, RECIPE, tmp_path)
    with pytest.raises(NotADirectoryError, match=r"must be a folder\. Received: .*letter\.txt"):
        compress(model, data, RECIPE, tmp_path / "letter.txt")
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    other.get_layer("conv1").activation = keras.activations.tanh
    with pytest.raises(ValueError, match=r"holds another run \(another network\)"):
        compress(other, data, RECIPE, done.folder)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(ValueError, match=r"holds another run \(another softmax\)"):
        compress(tfc.as_logits(model)[0], data, RECIPE, done.folder)


def test_folder_of_a_run_that_died_at_its_first_file_is_taken(data, tmp_path):
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / ".run.123.part.json").write_text("{")
    model = keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(10)])
    assert compress(model, data, [{"export": {"precision": "float32"}}], tmp_path).file.path.exists()


def test_teacher_is_the_model_as_it_came(data, tmp_path, monkeypatch):
    def fit(model, *_, teacher, **__):
        taught.append(teacher)
        model.set_weights([2 * weights for weights in model.get_weights()])

    taught, model = [], keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(10)])
    before = model.get_weights()
    monkeypatch.setattr("tfcompress.training.fit", fit)
    steps = [{"finetune": {"epochs": 1}}, {"finetune": {"epochs": 1, "distill": True}}]
    tuned = compress(model, data, [*steps, {"export": {"precision": "float32"}}], tmp_path / "out").model
    assert taught[0] is None
    for original, teacher, student in zip(before, taught[1].get_weights(), tuned.get_weights(), strict=True):
        np.testing.assert_array_equal(teacher, original)
        np.testing.assert_array_equal(student, 4 * original)


def test_time_of_a_training_is_that_of_all_its_epochs(data, tmp_path):
    """Those before an interruption, too."""
    model = keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(10)])
    steps = [{"finetune": {"epochs": 2}}, {"export": {"precision": "float32"}}]
    folder = compress(model, data, steps, tmp_path / "out").folder / "steps" / "1-finetune"
    arrays, meta = load_checkpoint(folder / "checkpoint.npz")
    meta["history"][0]["seconds"] = 1000
    save_checkpoint(folder / "checkpoint.npz", arrays, meta)
    (folder / "measured.json").unlink()
    rows = compress(model, data, steps, tmp_path / "out").summary["steps"]
    assert 1000 <= rows[1]["seconds"] < 1060


def test_channels_first_models_lose_the_channels_that_the_summary_says(digits, tmp_path):
    inputs = keras.Input((1, 28, 28))
    x = layers.Conv2D(8, 3, strides=4, data_format="channels_first", name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))
    data = np.transpose(digits.x_train[:100], (0, 3, 1, 2)), digits.y_train[:100]
    steps = [{"prune": {"ratio": 0.5}}, {"export": {"precision": "float32"}}]
    done = compress(model, data, steps, tmp_path / "out")
    row = done.summary["layers"][0]
    assert (row["name"], row["channels_before"], row["channels_after"]) == ("conv", 8, 4)
    assert "channels last" not in (done.folder / "report.html").read_text()


def test_impossible_targets_are_found_before_anything_runs(model, data, tmp_path):
    steps = [{"prune": {"params_reduction": 0.999}}, {"export": {}}]
    with pytest.raises(ValueError, match=r"step 1: .*cannot be reached"):
        compress(model, data, steps, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def files(model, digits, tmp_path_factory):
    """The model and the data as a user of the command has them."""
    folder = tmp_path_factory.mktemp("files")
    model.save(folder / "model.keras")
    fields = dataclasses.asdict(digits) if dataclasses.is_dataclass(digits) else digits._asdict()
    arrays = {key: value for key, value in fields.items() if isinstance(value, np.ndarray)}
    np.savez(folder / "digits.npz", **arrays)
    return folder


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_is_instant_and_teaches():
    command = "import sys; from tfcompress.cli import main\ntry: main(['prune', '--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", command + "print('tensorflow' in sys.modules, 'keras' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("False False\n")
    assert "example: tfcompress prune model.keras -o small.keras" in " ".join(done.stdout.split())


def test_profile_groups_and_dry_runs(files, capsys):
    code, out, _ = run(capsys, "profile", files / "model.keras")
    assert code == 0 and "conv2" in out and "float32" in out
    code, out, _ = run(capsys, "groups", files / "model.keras")
    assert code == 0 and "conv1" in out
    code, out, _ = run(capsys, "prune", files / "model.keras", "--macs-reduction", "0.5", "--dry-run")
    assert code == 0 and "int8 bytes" in out
    code, out, _ = run(capsys, "factorize", files / "model.keras", "--energy", "0.5", "--dry-run")
    assert code == 0 and "full rank" in out and "written" not in out
    code, out, _ = run(capsys, "compress", files / "model.keras", "--dry-run")
    assert code == 0 and "params_reduction=0.6" in out and "int8 bytes" in out and "bfloat16" not in out
    code, out, _ = run(capsys, "compress", files / "model.keras", "--dry-run", "--bfloat16")
    assert code == 0 and out.count("precision=mixed_bfloat16") == 1


def test_step_by_step(files, capsys):
    model, data = files / "model.keras", ("--data", files / "digits.npz")
    small, tuned, int8 = files / "small.keras", files / "tuned.keras", files / "tuned.tflite"
    code, out, _ = run(capsys, "prune", model, "-o", small, "--criterion", "l2", "--ratio", "0.25", *data)
    assert code == 0 and "written" in out and small.with_suffix(".plan.json").exists()
    training = ("--epochs", "2", "--learning-rate", "0.002", "--bfloat16")
    code, out, _ = run(capsys, "finetune", small, *data, "--teacher", model, *training, "-o", tuned)
    assert code == 0 and "epoch 2/2" in out
    assert load_checkpoint(files / "tuned.keras.training" / "checkpoint.npz")[1]["precision"] == "mixed_bfloat16"
    code, out, _ = run(capsys, "quantize", tuned, *data, "-o", int8)
    assert code == 0 and f"{int8.stat().st_size:,} bytes" in out
    code, out, _ = run(capsys, "evaluate", int8, *data)
    assert code == 0 and "test images" in out and float(out.split()[1].rstrip("%")) > 85
    code, out, _ = run(capsys, "compare", tuned, int8, *data)
    assert code == 0 and "SNR (dB)" in out
    code, out, _ = run(capsys, "benchmark", int8)
    assert code == 0 and "median (ms)" in out
    curves = files / "curves.json"
    code, out, err = run(capsys, "sensitivity", model, *data, "--ratios", "0.5", "--layers", "conv2", "-o", curves)
    assert "measured 1 of 1 layers: conv2" in err
    assert code == 0 and "conv2" in out and "-50%" in out and f"written: {curves}" in out
    code, out, _ = run(capsys, "prune", model, "--ratio", "0.25", "--scope", curves, "--dry-run")
    assert code == 0 and re.search(r"conv1 +whole", out) and re.search(r"conv2 +\d+ +\d+ +25\.0%", out)


def test_two_classes_by_one_number_step_by_step(digits, capsys, tmp_path):
    """And with a base inside the model, as in Keras' tutorial of transfer learning."""
    keras.utils.set_random_seed(0)
    base = keras.Sequential([keras.Input((28, 28, 1)), layers.Conv2D(8, 5, strides=3, name="conv"), layers.ReLU()])
    base.name = "base"
    inputs = keras.Input((28, 28, 1))
    x = layers.Flatten()(base(inputs, training=False))
    model = keras.Model(inputs, layers.Dense(1, "sigmoid", name="head")(x), name="odd")
    model.compile("adam", "binary_crossentropy")
    model.fit(digits.x_train / 255.0, digits.y_train % 2, epochs=3, verbose=0)
    path, data = tmp_path / "model.keras", ("--data", tmp_path / "odd.npz")
    model.save(path)
    np.savez(data[1], x=digits.x_test, y=digits.y_test % 2)
    right = np.mean((model.predict(digits.x_test / 255.0, verbose=0)[:, 0] > 0.5) == digits.y_test % 2)
    assert right > 0.8

    assert f"top-1 {right:.2%} " in run(capsys, "evaluate", path, *data)[1]
    out = run(capsys, "sensitivity", path, *data, "--layers", "base/conv", "--ratios", "0.5", "--images", "9999")[1]
    assert "base/conv" in out and "accuracy of the whole network" in out
    small, tuned, int8 = (tmp_path / name for name in ("small.keras", "tuned.keras", "int8.tflite"))
    assert run(capsys, "prune", path, *data, "--ratio", "0.5", "-o", small)[0] == 0
    code, _, err = run(capsys, "finetune", small, *data, "--teacher", path, "--epochs", "2", "-o", tuned)
    assert code == 0 and "odd: its one output becomes two" in err
    assert keras.models.load_model(tuned).output_shape == (None, 2)
    assert run(capsys, "quantize", tuned, *data, "--qat", "--epochs", "1", "-o", int8)[0] == 0
    assert float(run(capsys, "evaluate", int8, *data)[1].split()[1].rstrip("%")) > 80


def test_what_chooses_nothing_takes_one_image_of_each_class(files, digits, capsys, tmp_path):
    places = [np.flatnonzero(digits.y_train == label)[0] for label in range(10)]
    np.savez(tmp_path / "ten.npz", x=digits.x_train[places], y=digits.y_train[places])
    model, data, int8 = files / "model.keras", ("--data", tmp_path / "ten.npz"), tmp_path / "m.tflite"
    commands = [("quantize", model, "-o", int8), ("compare", model, int8), ("evaluate", int8), ("evaluate", model)]
    commands.append(("prune", model, "--ratio", "0.5", "-o", tmp_path / "small.keras"))
    outs = [run(capsys, *command, *data) for command in commands]
    assert [(code, err) for code, _, err in outs] == [(0, "")] * 5
    assert "of 10 images" in outs[2][1]
    code, _, err = run(capsys, "quantize", model, *data, "--qat", "-o", int8)
    assert code == 1 and "leaves no training image of class" in err


@pytest.mark.parametrize("kept", ["sparsity", "sharing"])
def test_int8_training_by_command_keeps_what_it_is_told_to(files, capsys, tmp_path, kept):
    command = ("quantize", files / "model.keras", "--data", files / "digits.npz", "--qat", "--epochs", "1")
    code, _, err = run(capsys, *command, f"--preserve-{kept}", "-o", tmp_path / "model.tflite")
    assert code == 0, err
    identity = load_checkpoint(tmp_path / "model.tflite.training" / "checkpoint.npz")[1]
    assert [identity[f"preserve_{what}"] for what in ("sparsity", "sharing")] == [kept == "sparsity", kept == "sharing"]


def test_whole_way_by_command(files, capsys):
    (files / "mine.yaml").write_text("steps:\n  - prune: {ratio: 0.25}\n  - export: {precision: int8}\n")
    arguments = ("compress", files / "model.keras", "--data", files / "digits.npz", "--recipe", files / "mine.yaml")
    code, out, err = run(capsys, *arguments, "-o", files / "out")
    assert code == 0, err
    summary = json.loads((files / "out" / "model.json").read_text())
    assert summary["recipe"]["name"] == "mine" and len(summary["source"]["sha256"]) == 64
    assert [step["precision"] for step in summary["steps"]] == ["float32", "float32", "int8"]
    assert f"{summary['file']['top1']:.2%}" in out and "report.html" in out


def test_transfer_learning(data, tmp_path, capsys):
    """A frozen base, called in inference, between augmentation and a head: as in Keras' own tutorial."""
    base = keras.Sequential([keras.Input((28, 28, 1)), layers.Conv2D(8, 5, strides=3, name="conv"), layers.ReLU()])
    base.name, base.trainable = "base", False
    inputs = keras.Input((28, 28, 1))
    x = base(layers.RandomRotation(0.1, name="turned")(inputs), training=False)
    x = layers.Conv2D(4, 3, name="head")(x)
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.Flatten()(x)), name="net")
    steps = [
        {"prune": {"ratio": 0.5, "skip": ["head"]}},
        {"finetune": {"epochs": 1, "distill": True}},
        {"qat": {"epochs": 1}},
        {"export": {}},
    ]
    small = compress(model, data, steps, tmp_path / "out")
    assert small.model.get_layer("base").get_layer("conv").filters == small.model.get_layer("head").filters == 4
    assert not base.trainable
    assert [step["precision"] for step in small.summary["steps"]] == ["float32", "float32", "float32", "int8"]
    assert [layer["channels_after"] for layer in small.summary["layers"]] == [4, 4, 10]
    err = capsys.readouterr().err
    assert "1 frozen layers are trained, too: conv" in err and "turned left out" in err


def test_prunings_that_are_no_plan_together_are_found_before_anything_runs():
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(8, 3), layers.Conv2D(8, 3, groups=2, name="grouped")]
    )
    for layer in (layers.Conv2D(8, 3), layers.GlobalAveragePooling2D(), layers.Dense(3)):
        model.add(layer)
    recipe = load_recipe([{"prune": {"ratio": 0.75}}, {"prune": {"ratio": 0.5}}, {"export": {}}])
    with pytest.raises(ValueError, match=r"step 2.*second plan is for another network.*'grouped'"):
        plan(model, recipe)


def test_what_qat_cannot_do_is_found_before_anything_runs(data, tmp_path):
    stack = [keras.Input((28, 28, 1)), layers.Conv2D(4, 5, strides=3), layers.PReLU(), layers.Flatten()]
    with pytest.raises(tfc.UnsupportedLayerError, match="PReLU"):
        compress(keras.Sequential([*stack, layers.Dense(10)]), data, "safe", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("layer", "steps", "message"),
    [
        (layers.ReLU(3.0), [{"qat": {"epochs": 1}}, {"export": {}}], "ReLU and ReLU6 only"),
        (layers.LayerNormalization(), [{"finetune": {"epochs": 1}}, {"export": {}}], "stayed float"),
    ],
)
def test_what_int8_cannot_do_is_found_before_anything_runs(layer, steps, message, data, tmp_path):
    stack = [keras.Input((28, 28, 1)), layers.Conv2D(4, 5, strides=3), layer, layers.Flatten(), layers.Dense(10)]
    with pytest.raises(ValueError, match=message):
        compress(keras.Sequential(stack), data, steps, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_sorted_by_class_are_calibrated_on_all_classes(data):
    x, y = data.train
    order = np.argsort(y, kind="stable")
    images = calibration_images(dataclasses.replace(data, train=(x[order], y[order])), 100)
    label = {image.tobytes(): number for image, number in zip(as_float(x)[..., 1:, :, :], y)}
    assert len({label[image.tobytes()] for image in images[..., 1:, :, :]}) == 10


def test_inputs_above_zero_are_trained_with_the_range_that_the_file_has(data):
    positive = dataclasses.replace(
        data, train=(np.full((4, 28, 28, 1), 7.0, "float32"), data.train[1][:4]), scaling="none"
    )
    assert input_range(positive) == (0.0, 7.0)
    stack = [keras.Input((28, 28, 1)), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(3)]
    wrapped = quantize_wrap(keras.Sequential(stack), input_range=(2.0, 7.0))
    quantizer = next(layer.quantizer for layer in wrapped.layers if getattr(layer, "quantizer", None))
    assert (quantizer.init_min, quantizer.init_max) == (0.0, 7.0)


def test_pixels_in_the_wrong_range_are_found_before_anything_is_trained(files, model, data, digits, tmp_path, capsys):
    takes_pixels = keras.Sequential([keras.Input((28, 28, 1)), layers.Rescaling(1 / 255), *model.layers])
    x, y = digits.x_train, digits.y_train
    with pytest.raises(ValueError, match=r"(?s)recognizes .*'0-1'.* and (9\d|100)% with scaling '0-255'"):
        compress(takes_pixels, (x, y), RECIPE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert better_scaling(model, data) is None
    assert better_scaling(takes_pixels, UserData((x * np.float32(1), y), None, None, (), "0-255", "")) is None
    assert better_scaling(model, UserData((x * 3 - np.float32(9), y), None, None, (), "none", "")) is None  # no pixels
    takes_pixels.save(tmp_path / "pixels.keras")
    command = ("quantize", tmp_path / "pixels.keras", "--data", files / "digits.npz", "-o", tmp_path / "m.tflite")
    code, _, err = run(capsys, *command)
    assert code == 0 and err.startswith("warning: The model recognizes")


@pytest.mark.parametrize("name", ["run.json", "original/measured.json", "1-prune/plan.json"])
def test_damaged_file_of_a_run_is_named(done, model, data, tmp_path, name):
    folder = shutil.copytree(done.folder, tmp_path / "out")
    (folder / "steps" / name).write_text("")
    with pytest.raises(ValueError, match=f"{re.escape(str(folder / 'steps' / name))} is damaged"):
        compress(model, data, RECIPE, folder)


def test_data_without_validation_are_refused(model, data, tmp_path):
    with pytest.raises(ValueError, match="data need validation images"):
        compress(model, dataclasses.replace(data, validation=None), RECIPE, tmp_path / "out")


def test_a_loss_of_ones_own_and_bad_arrays(model, data, tmp_path):
    x, y = data.validation
    model.compile("adam", lambda targets, outputs: keras.ops.mean(outputs))
    steps = [{"prune": {"ratio": 0.25}}, {"export": {"precision": "float32"}}]
    assert compress(model, (x, y), steps, tmp_path / "out").file.precision == "float32"
    with pytest.raises(ValueError, match=r"labels of shape \(200, 10\) are not one-hot"):
        compress(model, (x, 0.9 * np.eye(10)[y]), steps, tmp_path / "other")
    with pytest.raises(ValueError, match=r"labels must be in \[0, 10\)"):
        compress(model, (x, y + 1), steps, tmp_path / "other")
    with pytest.raises(ValueError, match="Received: int64"):
        compress(model, (x.astype("int64"), y), steps, tmp_path / "other")
    with pytest.raises(ValueError, match=r"data must be \(images, labels\).*Received: tuple of 4"):
        compress(model, (x, y, x, y), steps, tmp_path / "other")
    with pytest.raises(ValueError, match="leaves no training image of class 0"):
        compress(model, (x[:20], np.array([0] + [1] * 18 + [2])), steps, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_arrays_without_the_last_class_still_name_every_output(model, data, tmp_path):
    x, y = data.validation
    few = y < 8
    compress(model, (x[few], y[few, None]), [{"export": {"precision": "float32"}}], tmp_path / "out")
    assert (tmp_path / "out" / "labels.txt").read_text().split() == [str(i) for i in range(10)]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["profile", "nowhere.keras"], 1, "nowhere.keras"),
        (["prune", "{model}", "--ratio", "0.5"], 2, "-o small.keras"),
        (["prune", "{model}", "--ratio", "1.5", "--dry-run"], 1, "ratio must be in (0, 1)"),
        (["prune", "{model}", "--ratio", "0.5", "--skip", "conv3", "--dry-run"], 1, "conv"),
        (["prune", "{model}", "--ratio", "0.5", "--scope", "world", "--dry-run"], 2, "Received: world"),
        (["prune", "{model}", "--ratio", "0.5", "--scope", "{model}", "--dry-run"], 1, "are no sensitivities"),
        (["prune", "{model}", "--ratio", "0.5", "-o", "small.h5"], 2, "the output is a .keras file"),
        (["factorize", "{model}", "--energy", "0.5"], 2, "-o thin.keras"),
        (["factorize", "{model}", "--energy", "2", "--dry-run"], 1, "energy must be a number in (0, 1)"),
        (["factorize", "{model}", "--energy", "0.5", "--data", "no.npz", "-o", "{folder}/x.keras"], 1, "no.npz"),
        (["quantize", "{model}", "--data", "{data}", "-o", "nowhere/x.tflite"], 2, "there is no folder nowhere"),
        (["quantize", "{model}", "--data", "{data}", "--qat", "--precision", "float16", "-o", "x.tflite"], 2, "int8"),
        (["quantize", "{model}", "--data", "{data}", "-o", "{folder}/x.tflite", "--preserve-sparsity"], 2, "--qat"),
        (
            ["quantize", "{model}", "--data", "{data}", "-o", "{folder}/x.tflite", "--flip", "--epochs", "5"],
            2,
            "--epochs, --flip: only with --qat",
        ),
        (
            ["quantize", "{model}", "--data", "{data}", "-o", "{folder}/x.tflite", "--held-out", "0.2"],
            2,
            "--held-out: only",
        ),
        (["compress", "{model}", "--data", "{folder}", "-o", "{folder}/out"], 2, "would be taken for data"),
        (["sensitivity", "{model}", "--data", "{data}", "--plot", "nowhere/s.png"], 2, "there is no folder nowhere"),
        (["evaluate", "{model}", "--data", "{data}", "--scaling", "-1-1", "--class-names", "a,b"], 1, "class"),
        (["compress", "{model}", "--data", "{data}"], 2, "-o out"),
        (["compress", "{model}", "--data", "{data}", "--recipe", "tiny", "-o", "{folder}/x"], 1, "no recipe 'tiny'"),
        (["sensitivity", "{model}", "--data", "{data}", "--plot", "curves"], 2, ".png, .svg or .pdf"),
        (["finetune", "{model}", "--data", "{data}", "-o", "{model}"], 2, "would replace the model that is read"),
        (
            ["finetune", "a.keras", "--data", "{data}", "--teacher", "{model}", "-o", "{model}"],
            2,
            "would replace the teacher",
        ),
        (["compare", "a.tflite", "b.tflite", "--data", "{data}"], 2, "must be a Keras model"),
    ],
)
def test_bad_input_is_one_line(files, capsys, arguments, code, message):
    names = {"model": files / "model.keras", "data": files / "digits.npz", "folder": files}
    got, _, err = run(capsys, *[argument.format(**names) for argument in arguments])
    assert got == code and message in err
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err


def test_number_of_images_is_above_zero(files, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(capsys, "compare", files / "model.keras", files / "model.keras", "--data", "x.npz", "--images", "-1")
    assert "--images: a whole number above 0 is expected. Received: -1" in capsys.readouterr().err


def test_accuracy_over_pixels_and_fractions(files, digits, capsys, tmp_path):
    """Training pixels and held-out floats are images of one kind when their accuracy is measured together."""
    x, y = digits.x_train[:100], digits.y_train[:100]
    np.savez(tmp_path / "pixels.npz", x=x, y=y)
    np.savez(tmp_path / "mixed.npz", x=x[:60], y=y[:60], x_val=x[60:].astype("float32") / 255, y_val=y[60:])
    said = [
        run(capsys, "evaluate", files / "model.keras", "--data", tmp_path / name)[1]
        for name in ("pixels.npz", "mixed.npz")
    ]
    assert "of 100 images" in said[0] and said[0] == said[1]


@contextlib.contextmanager
def full_disk(left):
    """As on a disk with so many bytes left, for each file: the system refuses what goes beyond."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (["prune", "{model}", "--ratio", "0.25"], "full.keras"),
        (["quantize", "{model}", "--data", "{data}"], "full.tflite"),
        (["finetune", "{model}", "--data", "{data}", "--epochs", "1"], "full.keras"),
    ],
)
def test_full_disk_leaves_no_file_behind(files, capsys, tmp_path, command, output):
    names = {"model": files / "model.keras", "data": files / "digits.npz"}
    with full_disk(2000):
        code, _, err = run(capsys, *[word.format(**names) for word in command], "-o", tmp_path / output)
    assert code == 1 and len(err.strip().splitlines()) == 1 and "File too large" in err
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_interrupted_training_goes_on_where_it_stopped(files, capsys, tmp_path, monkeypatch):
    module = sys.modules["tfcompress.training.fit"]
    save = module.save_checkpoint

    def interrupt(path, *state):
        save(path, *state)
        raise KeyboardInterrupt

    model, data, output = files / "model.keras", files / "digits.npz", tmp_path / "tuned.keras"
    command = ("finetune", model, "--data", data, "--epochs", "2", "-o", output)
    monkeypatch.setattr(module, "save_checkpoint", interrupt)
    code, _, err = run(capsys, *command)
    assert code == 1 and err == "interrupted; the same command goes on where it stopped\n" and not output.exists()
    monkeypatch.undo()
    code, out, _ = run(capsys, *command)
    assert code == 0 and "epoch 2/2" in out and "epoch 1/2" not in out and output.exists()
