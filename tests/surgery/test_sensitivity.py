"""Sensitivity: a layer that matters and one that does not are told apart, and the ratios follow."""

import keras
import numpy as np
import pytest
from keras import layers
from law import lifelike

from tfcompress import ChannelGraph, Sensitivity, plan_pruning, prune_channels, recalibrate, sensitivity
from tfcompress.models import resnet
from tfcompress.outputs import divergence, with_softmax
from tfcompress.surgery import budget


@pytest.fixture(scope="module")
def classifier():
    """A network that tells which of eight inputs is largest: "idle" feeds nothing, "busy" carries the answer."""
    inputs = keras.Input((8,))
    busy = layers.Dense(8, name="busy")(inputs)
    idle = layers.Dense(8, name="idle")(inputs)
    model = keras.Model(inputs, layers.Dense(8, name="logits")(layers.Concatenate()([busy, idle])))
    model.get_layer("busy").kernel.assign(np.eye(8))
    model.get_layer("logits").kernel.assign(np.concatenate([np.eye(8), np.zeros((8, 8))]))
    x = np.random.default_rng(0).random((400, 8))
    return model, x, x.argmax(axis=1)


@pytest.fixture(scope="module")
def measured(classifier):
    model, x, y = classifier
    return sensitivity(model, x, y[:, None], ratios=(0.25, 0.5))


def test_accuracy_falls_where_it_must(measured):
    assert measured.baseline == 1.0
    assert measured.accuracy["idle"] == {0.25: 1.0, 0.5: 1.0}
    for ratio, accuracy in measured.accuracy["busy"].items():  # the classes of removed channels are lost
        assert accuracy == pytest.approx(1 - ratio, abs=0.1)


def test_ratios_are_the_largest_harmless_ones(classifier, measured):
    assert measured.ratios(max_drop=0.01) == {"busy": 0.0, "idle": 0.5}
    assert measured.ratios(max_drop=0.4) == {"busy": 0.25, "idle": 0.5}
    pruned, _ = prune_channels(classifier[0], ratios=measured.ratios(max_drop=0.01))
    assert [layer.units for layer in pruned.layers if isinstance(layer, layers.Dense)] == [8, 4, 8]


def test_table_and_plot(measured, tmp_path):
    lines = str(measured).splitlines()
    assert lines[0].endswith("100.00%") and "-25%" in lines[1] and len(lines) == 5
    measured.plot(tmp_path / "sensitivity.png")
    assert (tmp_path / "sensitivity.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="not supported"):
        measured.plot(tmp_path / "sensitivity.doc")
    assert [path.name for path in tmp_path.iterdir()] == ["sensitivity.png"]


def test_pixels_are_fractions(classifier):
    """A bias that decides for inputs of up to 1 is lost among those of up to 255."""
    model, x, y = classifier
    pixels = np.rint(255 * x).astype("uint8")
    model.get_layer("logits").bias.assign(10 * np.eye(8)[3])
    try:
        expected = np.mean(y == 3)
        assert sensitivity(model, pixels, y, ["idle"], (0.5,)).accuracy["idle"][0.5] == expected
    finally:
        model.get_layer("logits").bias.assign(np.zeros(8))


def test_what_is_no_classifier_or_would_see_black_images_is_refused():
    x, y = np.full((4, 6), 0.5), np.zeros(4, int)
    binary = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Dense(1, activation="tanh")])
    with pytest.raises(ValueError, match="one number per class"):
        sensitivity(binary, x, y)
    whole = keras.Sequential([keras.Input((6,), dtype="uint8"), layers.Rescaling(1 / 255), layers.Dense(4, name="a")])
    whole.add(layers.Dense(2))
    with pytest.raises(ValueError, match=r"takes uint8, and fractions.*Received: float64 from 0\.5 to 0\.5"):
        sensitivity(whole, x, y)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 6), "uint8")
    classes = whole.predict(pixels, verbose=0).argmax(-1)
    assert sensitivity(whole, pixels, classes, ["a"], (0.5,)).baseline == 1.0


def test_it_measures_the_networks_that_surgery_makes():
    """On a residual network with statistics that matter, whether it returns logits or probabilities."""
    rng = np.random.default_rng(0)
    x, y = rng.random((48, 16, 16, 3), "float32"), rng.integers(0, 10, 48)
    model = recalibrate(lifelike(resnet(8, input_shape=(16, 16, 3)), [x]), x, 48)
    groups = [group.name.partition("#")[0] for group in ChannelGraph(model).groups]
    layers = ["conv1", "stage2_block1_conv1"]
    result = sensitivity(model, x, y, layers, (0.5,), "l2")
    for layer, curve in result.divergence.items():
        pruned, _ = prune_channels(model, "l2", ratios={**dict.fromkeys(groups, 0.0), layer: 0.5})
        logits = recalibrate(pruned, x, 48).predict(x, verbose=0)
        assert curve[0.5] == pytest.approx(divergence(model.predict(x, verbose=0), logits), rel=1e-3, abs=1e-5)
        assert curve[0.5] > 1e-3
        assert result.accuracy[layer][0.5] == np.mean(logits.argmax(-1) == y)
    probabilities = sensitivity(with_softmax(model), x, y, ["conv1"], (0.5,), "l2").divergence["conv1"][0.5]
    assert probabilities == pytest.approx(result.divergence["conv1"][0.5], rel=1e-3)


def test_what_costs_least_for_what_it_saves_goes_first(classifier, measured):
    """ "idle" feeds nothing, "busy" carries the answer; each holds as many parameters."""
    model = classifier[0]
    _, plan = prune_channels(model, params_reduction=0.18, scope=measured)
    assert (len(plan.kept["busy"]), len(plan.kept["idle"])) == (8, 5)
    _, plan = prune_channels(model, ratio=0.25, scope=measured)
    assert (len(plan.kept["busy"]), len(plan.kept["idle"])) == (8, 4)
    # Beyond the largest ratio that was measured nothing is known, and all that was measured goes before.
    _, plan = prune_channels(model, ratio=0.5, scope=measured)
    assert (len(plan.kept["busy"]), len(plan.kept["idle"])) == (4, 4)
    _, plan = prune_channels(model, ratio=0.2, scope=Sensitivity(1.0, {}, {"busy": {0.5: 1.0}}))
    assert (len(plan.kept["busy"]), len(plan.kept["idle"])) == (6, 8)
    with pytest.raises(ValueError, match=r"cannot be reached: the most is 0\.0%"):
        prune_channels(model, params_reduction=0.5, scope=Sensitivity(1.0, {}, {}))
    with pytest.raises(ValueError, match="layer that the model does not have: 'lazy'"):
        prune_channels(model, ratio=0.2, scope=Sensitivity(1.0, {}, {"lazy": {0.5: 1.0}}))


def test_damage_is_read_as_convex():
    """What rises early and is flat later costs the same for every channel; a steep end comes last."""
    group = [None] * 10
    early, late = {0.1: 0.8, 0.5: 1.0}, {0.4: 0.0, 0.5: 0.3}
    steps = budget.steps_by_damage([group, group], {0: early, 1: late}, {0: 1.0, 1: 1.0}, round_to=1)
    assert [(step.group, step.count) for step in steps[:10]] == [
        *((1, 9), (1, 8), (1, 7), (1, 6)),
        *((0, 9), (0, 8), (0, 7), (0, 6), (0, 5)),
        (1, 5),
    ]
    assert [step.key for step in steps[:10]] == pytest.approx([0] * 4 + [2] * 5 + [3])
    assert {step.key for step in steps[10:]} == {np.inf}
    # Where the second saves twice as much, its end is cheaper; widths of a multiple of 5 take both parts of its curve.
    steps = budget.steps_by_damage([group, group], {0: early, 1: late}, {0: 1.0, 1: 2.0}, round_to=5)
    assert [(step.group, step.count, step.key) for step in steps] == [(1, 5, pytest.approx(0.3)), (0, 5, 2.0)]


def test_what_was_measured_together_shares_the_damage():
    """A layer of two groups, against one that is measured by its name or by that of a layer coupled to it."""
    inputs = keras.Input((4,))
    parted = layers.Dense(20, name="parted")(inputs)
    whole = layers.Dense(20, name="whole")(inputs)
    parts = [layers.Dense(3)(part) for part in keras.ops.split(parted, [8], axis=-1)]
    tail = layers.Add()([whole, layers.Dense(20, name="coupled")(inputs)])
    model = keras.Model(inputs, layers.Concatenate()([*parts, layers.Dense(3)(tail)]))
    for name in ("whole", "coupled"):
        curves = Sensitivity(1.0, {}, {"parted": {0.5: 1.0}, name: {0.5: 1.0}})
        plan = plan_pruning(model, ratio=0.25, scope=curves)
        kept = {layer: len(plan.kept[layer]) for layer in ("parted", "whole", "coupled")}
        assert kept["whole"] == kept["coupled"] == 30 - kept["parted"]
        assert kept["parted"] == pytest.approx(15, abs=1)  # of 3 groups, each loses a quarter to the nearest channel
    cheaper = Sensitivity(1.0, {}, {"parted": {0.5: 0.9}, "whole": {0.5: 1.0}})
    assert len(plan_pruning(model, ratio=0.25, scope=cheaper).kept["parted"]) == 10


def test_order_of_the_examples_does_not_matter():
    """Statistics of batches of one class each would be others."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 64)
    x = (rng.normal(size=(256, 8)) + 3 * np.eye(8)[y]).astype("float32")
    stack = [layers.BatchNormalization(), layers.Dense(16, "relu", name="a"), layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((8,)), *stack, layers.Dense(4, name="b")])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    order = rng.permutation(256)
    model.fit(x[order], y[order], epochs=30, verbose=0)
    assert sensitivity(model, x, y, ratios=(0.5,), batch_size=64).baseline > 0.95


def test_renormalization_takes_the_statistics_of_the_batch_too():
    rng = np.random.default_rng(0)
    stack = [layers.Dense(16, name="a"), layers.BatchNormalization(renorm=True), layers.ReLU(), layers.Dense(4)]
    model = keras.Sequential([keras.Input((8,)), *stack])
    x = rng.normal(size=(64, 8)).astype("float32")
    recalibrate(model, x, 64)
    pruned = recalibrate(prune_channels(model, ratios={"a": 0.5}).model, x, 64)
    expected = divergence(model.predict(x, verbose=0), pruned.predict(x, verbose=0))
    measured = sensitivity(model, x, np.zeros(64, int), ratios=(0.5,)).divergence["a"][0.5]
    assert measured == pytest.approx(expected, rel=1e-3) and measured > 1e-3


def test_bad_arguments_and_measurements_are_named(classifier):
    model, x, y = classifier
    for arguments, message in (
        ({"y": y[:9]}, r"each with a label\. Received: 400 and 9 labels"),
        ({"batch_size": 0}, r"batch_size must be at least 1"),
        ({"layers": "idle"}, r"list of names\. Received: 'idle'"),
        ({"layers": ["idle", "bus"]}, r"layers names a layer that the model does not have: 'bus'\. .* 'busy'"),
        ({"layers": ["logits"]}, r"layers names a layer without channels that can be removed: 'logits'"),
        ({"ratios": (0.5, 1)}, r"ratios must be in \(0, 1\)\. Received: 1\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            sensitivity(model, x, **{"y": y, **arguments})
    multiple = keras.Sequential([keras.Input((8,)), layers.Dense(8), layers.Dense(8, "sigmoid")])
    with pytest.raises(ValueError, match="ends in a sigmoid"):
        sensitivity(multiple, x, y)
    spoiled = keras.models.clone_model(model)
    spoiled.get_layer("logits").bias.assign(np.full(8, np.nan))
    with pytest.raises(ValueError, match="not finite"):
        sensitivity(spoiled, x, y)
    for value, ratio in ((-1.0, 0.5), (np.nan, 0.5), (np.inf, 0.5), (1.0, 1.5), (1.0, np.nan)):
        with pytest.raises(ValueError, match=r"No divergence of a ratio of 'a'"):
            Sensitivity(1.0, {}, {"a": {ratio: value}})
    with pytest.raises(ValueError, match="baseline"):
        Sensitivity(np.nan, {}, {})
    with pytest.raises(ValueError, match=r"needs a ratio or a reduction .* <Sensitivity of 1 layers>"):
        prune_channels(model, ratios={"idle": 0.5}, scope=Sensitivity(1.0, {}, {"busy": {0.5: 1.0}}))


def test_they_survive_json(measured):
    assert Sensitivity.from_json(measured.to_json()) == measured
    with pytest.raises(ValueError, match=r"no sensitivities as `to_json` writes them: KeyError"):
        Sensitivity.from_json('{"baseline": 1}')


def test_chosen_layers_of_a_network_with_zero_padded_shortcuts():
    x = np.zeros((2, 32, 32, 3), "float32")
    result = sensitivity(resnet(8), x, np.zeros(2), layers=["conv1", "stage2_block1_conv2"], ratios=(0.5,))
    assert list(result.accuracy) == ["conv1", "stage2_block1_conv2"]
    prune_channels(resnet(8), ratios={"conv1": 0.5, "stage2_block1_conv2": 0.25})  # two groups, no contradiction


def test_a_drop_of_just_as_much_is_harmless():
    assert Sensitivity(0.8, {"a": {0.1: 0.7, 0.5: 0.69}}, {}).ratios(0.1) == {"a": 0.1}  # 0.8 - 0.1 > 0.7 in floats
