"""Plans, budgets and the errors of bad input."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfcompress import apply_plan, criteria, plan_pruning, profile, prune_channels
from tfcompress.models import lenet5, resnet, vgg16
from tfcompress.surgery import ChannelGraph, PruningPlan
from tfcompress.surgery.matrices import weight_gradient_products


@pytest.fixture(scope="module")
def net():
    return resnet(14)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.random((32, 32, 32, 3), "float32"), rng.integers(0, 10, 32)


def widths(plan):
    return {name: len(kept) for name, kept in plan.kept.items()}


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.7])
def test_ratio_is_the_ratio_of_every_layer(net, ratio):
    plan = plan_pruning(net, ratio=ratio)
    for name, kept in plan.kept.items():
        if name != "logits":
            assert len(kept) / plan.widths[name] == pytest.approx(1 - ratio, abs=0.5 / 16 + 1e-9)


@pytest.mark.parametrize("what", ["macs", "params"])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("target", [0.1, 0.5, 0.786])
def test_solved_cut_is_at_most_a_point_above_its_target(net, what, scope, target):
    plan = plan_pruning(net, scope=scope, **{f"{what}_reduction": target})
    assert target <= getattr(plan, f"{what}_reduction") <= target + 0.01
    assert all(len(kept) >= 1 for kept in plan.kept.values())


def test_solved_cut_is_the_smallest(net):
    """One channel more in the last layer that was cut, and the target is missed."""
    plan = plan_pruning(net, macs_reduction=0.5)
    graph = ChannelGraph(net)
    missed = 0
    for group in graph.groups:
        alive = graph.alive(plan.kept)
        dead = group.classes[~alive[group.classes]]
        alive[dead[:1]] = True
        missed += 1 - graph.cost(alive).macs / plan.before.macs < 0.5
    assert missed >= 1


@pytest.mark.parametrize("name", sorted(criteria.REGISTRY))
def test_every_criterion_plans_the_same_budget(net, images, name):
    criterion = criteria.Taylor(*images) if name == "taylor" else name
    pruned, plan = prune_channels(net, criterion, macs_reduction=0.4)
    assert 0.4 <= plan.macs_reduction <= 0.41
    assert plan.criterion == name
    counted = profile(pruned)
    assert (counted.params, counted.macs) == (plan.after.params, plan.after.macs)


def test_taylor_spares_the_channels_that_matter(images):
    """A channel that nothing reads has no gradient; Taylor drops exactly those."""
    model = lenet5(input_shape=(32, 32, 3))
    kernel = np.array(model.get_layer("conv2").kernel)
    kernel[:, :, ::2] = 0
    model.get_layer("conv2").kernel.assign(kernel)
    plan = plan_pruning(model, criteria.Taylor(*images), ratios={"conv1": 0.5})
    np.testing.assert_array_equal(plan.kept["conv1"], np.arange(1, 20, 2))


def test_taylor_reads_the_gradients_of_the_loss_in_inference():
    """Frozen, noisy, augmented, regularized, constrained networks have those of the plain one; pixels are fractions."""
    rng = np.random.default_rng(0)
    kernels = rng.normal(size=(3, 3, 3, 4)) / 5, rng.normal(size=(144, 4)) / 15
    x, y = rng.integers(0, 256, (32, 8, 8, 3), "uint8"), rng.integers(0, 4, 32)

    def products(x, front=(), regularizer=None, constraint=None, trainable=True):
        options = {"kernel_regularizer": regularizer, "kernel_constraint": constraint}
        conv = layers.Conv2D(4, 3, activation="relu", use_bias=False, name="conv", **options)
        norm, dense = layers.BatchNormalization(), layers.Dense(4, use_bias=False)
        model = keras.Sequential(
            [keras.Input((8, 8, 3)), *front, conv, norm, layers.Dropout(0.5), layers.Flatten(), dense]
        )
        conv.kernel.assign(kernels[0])
        dense.kernel.assign(kernels[1])
        model.trainable = trainable
        return weight_gradient_products(ChannelGraph(model), x, y)["conv"]

    plain = products(x / np.float32(255))
    with tf.GradientTape() as tape:
        kernel = tf.constant(kernels[0], "float32")
        tape.watch(kernel)
        signals = tf.nn.relu(tf.nn.conv2d(x / np.float32(255), kernel, 1, "VALID")) / np.sqrt(1 + 1e-3)
        logits = tf.reshape(signals, (32, -1)) @ tf.constant(kernels[1], "float32")
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
    expected = np.sum(tape.gradient(loss, kernel) * kernels[0], axis=(0, 1, 2))
    np.testing.assert_allclose(plain[:, 0], expected, rtol=1e-3, atol=1e-5)
    for other in (
        products(x),
        products(x, [layers.RandomFlip(), layers.RandomContrast(0.9), layers.GaussianNoise(0.5)]),
        products(x, regularizer=keras.regularizers.L2(0.1)),
        products(x, trainable=False),
        products(x, constraint=keras.constraints.NonNeg()),
    ):
        np.testing.assert_allclose(other, plain, rtol=1e-4, atol=1e-6)


def test_bn_gamma_drops_the_small_scales(net):
    rng = np.random.default_rng(0)
    gamma = net.get_layer("stage3_block2_conv1_bn").gamma
    old, new = np.array(gamma), rng.uniform(0.1, 2, 64)
    gamma.assign(new)
    plan = plan_pruning(net, "bn_gamma", ratio=0.5)
    gamma.assign(old)
    np.testing.assert_array_equal(plan.kept["stage3_block2_conv1"], np.sort(np.argsort(-new)[:32]))


def test_front_to_back_criteria_judge_the_sliced_layer():
    """Filters that differ only in what they read from removed channels are the same filter."""
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((4, 4, 2)), layers.Conv2D(6, 1, name="a"), layers.Conv2D(4, 1, name="b")])
    model.add(layers.Conv2D(2, 1, name="c"))
    first = rng.normal(size=(1, 1, 2, 6))
    first[..., 3:] = 0.9 * first[..., :3]  # filters 3 to 5 repeat 0 to 2, and are smaller: they go
    second = rng.normal(size=(1, 1, 6, 4))
    second[:, :, :3, 1] = second[:, :, :3, 0]  # apart only in the inputs 3 to 5
    model.get_layer("a").kernel.assign(first)
    model.get_layer("b").kernel.assign(second)
    plan = plan_pruning(model, "diversity", ratios={"a": 0.5, "b": 0.25})
    np.testing.assert_array_equal(plan.kept["a"], [0, 1, 2])
    assert set(plan.kept["b"]) != {0, 1, 2} and len({0, 1} & set(plan.kept["b"])) == 1


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_round_to_gives_multiples_that_reach_the_target(net, scope):
    plan = plan_pruning(net, macs_reduction=0.5, round_to=8, scope=scope)
    assert plan.macs_reduction >= 0.5
    assert all(width % 8 == 0 for name, width in widths(plan).items() if name != "logits")


def test_global_scope_is_one_threshold(net):
    rng = np.random.default_rng(0)
    for layer in net.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(rng.uniform(0, 1, layer.gamma.shape))
    plan = plan_pruning(net, "bn_gamma", ratio=0.4, scope="global")
    kept, gone = [], []
    for name, indices in plan.kept.items():  # a block's first convolution is coupled to nothing else
        if name.endswith("_conv1"):
            gamma = np.array(net.get_layer(f"{name}_bn").gamma)
            kept += gamma[indices].tolist()
            gone += np.delete(gamma, indices).tolist()
    assert max(gone) < min(kept)
    removed = sum(
        len(group) - np.isin(group.classes, np.flatnonzero(ChannelGraph(net).alive(plan.kept))).sum()
        for group in ChannelGraph(net).groups
    )
    assert removed == pytest.approx(0.4 * sum(map(len, ChannelGraph(net).groups)), abs=1)


def test_skip_and_ratios_override(net):
    plan = plan_pruning(net, ratio=0.5, skip=["stage1_block1_conv1"], ratios={"stage2_block1_conv1": 0.25})
    kept = widths(plan)
    assert (kept["stage1_block1_conv1"], kept["stage2_block1_conv1"], kept["stage2_block2_conv1"]) == (16, 24, 16)
    alone = widths(plan_pruning(net, ratios={"stage2_block1_conv1": 0.25}))
    assert alone.pop("stage2_block1_conv1") == 24
    assert all(width == plan.widths[name] for name, width in alone.items())


def test_thresholds_choose_their_own_numbers(net):
    for criterion in (criteria.Diversity(0.15), criteria.Redundancy(0.05)):
        kept = widths(plan_pruning(net, criterion))
        assert len({kept[f"stage3_block{block}_conv1"] for block in (1, 2)}) > 1


def test_json_round_trip_and_apply(net):
    plan = plan_pruning(net, ratio=0.5, skip=["conv1"])
    again = PruningPlan.from_json(plan.to_json())
    assert json.loads(again.to_json()) == json.loads(plan.to_json())
    assert profile(apply_plan(net, again)).params == plan.after.params


def test_pruning_twice_equals_the_composed_plan(net):
    first = prune_channels(net, "l2", ratio=0.3)
    second = prune_channels(first.model, "l1", ratio=0.4)
    composed = first.plan.then(second.plan)
    once = apply_plan(net, composed)
    for a, b in zip(once.get_weights(), second.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (composed.before, composed.after) == (first.plan.before, second.plan.after)


def test_printed_plan_shows_channels_macs_and_parameters(net):
    plan = plan_pruning(net, ratio=0.5)
    text = str(plan)
    assert re.search(r"stage3_block1_conv2 +64 +32 +50.0%", text)
    for before, after in zip(plan.before, plan.after):
        assert re.search(rf"{before:,} +{after:,} +\d+.\d%", text)


def test_printed_graph_names_groups_axes_and_reasons(net):
    text = str(ChannelGraph(net, skip=["stage1_block1_conv1"]))
    assert "group 1, conv1: 16 coupled channels" in text
    assert "makes stage3_block1_conv2: kernel, axis 3: 16 of 64" in text
    assert "logits: 10 of 10 channels, an output of the model" in text
    assert "stage1_block1_conv1: 16 of 16 channels, skipped" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"ratio": 1.4}, "ratio=1.4"),
        ({"ratio": 0}, "ratio=0"),
        ({"macs_reduction": -0.1}, "macs_reduction=-0.1"),
        ({}, "exactly one"),
        ({"ratio": 0.5, "macs_reduction": 0.5}, "exactly one"),
        ({"params_reduction": 0.5, "macs_reduction": 0.5, "scope": "global"}, 'need scope="layer"'),
        ({"params_reduction": 0.5, "macs_reduction": 0.999}, "cannot be reached: the most is .* and 99"),
        ({"ratio": 0.5, "criterion": "l0"}, "'l0'. Known"),
        ({"ratio": 0.5, "criterion": "taylor"}, "needs data"),
        ({"ratio": 0.5, "skip": ["stage1_block1_cnv1"]}, "nearest name is 'stage1_block1_conv1'"),
        ({"ratios": {"stage1_blck1_conv1": 0.5}}, "nearest name is 'stage1_block1_conv1'"),
        ({"ratios": {"logits": 0.5}}, "without channels that can be removed: 'logits'"),
        ({"ratios": {"conv1": 1.0}}, r"ratios\['conv1'\]"),
        ({"ratios": {"conv1": 0.5, "stage1_block1_conv2": 0.25}}, "coupled layers different ratios"),
        ({"macs_reduction": 0.999}, "cannot be reached: the most is"),
        ({"ratio": 0.5, "scope": "world"}, "scope='world'"),
        ({"ratio": 0.5, "round_to": 0}, "round_to=0"),
        ({"ratio": 0.5, "scope": "global", "criterion": "distribution_fit"}, "no scores to compare"),
        ({"ratio": 0.5, "criterion": criteria.Diversity(0.5)}, "threshold"),
    ],
)
def test_bad_arguments_are_named(net, arguments, message):
    with pytest.raises(ValueError, match=message):
        prune_channels(net, **arguments)


@pytest.mark.parametrize(
    ("scores", "scope", "message"),
    [
        (lambda filters: np.abs(filters).max(axis=1, keepdims=True), "layer", r"Received: shape \(8, 1\)"),
        (lambda filters: np.abs(filters).max(axis=0), "layer", "a finite score for each of 8 filters"),
        (lambda filters: np.where(np.arange(len(filters)) == 3, np.nan, 1.0), "layer", "NaN or infinity among them"),
        (lambda filters: -np.linalg.norm(filters, axis=1), "global", "must not be negative"),
    ],
)
def test_bad_scores_of_a_criterion_of_ones_own_are_named(scores, scope, message):
    mine = type("Mine", (criteria.Criterion,), {"name": "mine", "scores": lambda self, filters: scores(filters)})
    stack = [keras.Input((8, 8, 3)), layers.Conv2D(8, 3), layers.Conv2D(8, 3), layers.Flatten(), layers.Dense(3)]
    with pytest.raises(ValueError, match=f"'mine' .*{message}"):
        plan_pruning(keras.Sequential(stack), mine(), ratio=0.5, scope=scope)


def test_bad_sets_of_a_criterion_of_ones_own_are_named():
    mine = type("Mine", (criteria.Criterion,), {"name": "mine", "keep": lambda self, filters, count: [0] * count})
    stack = [keras.Input((8, 8, 3)), layers.Conv2D(8, 3), layers.Flatten(), layers.Dense(3)]
    with pytest.raises(ValueError, match=r"'mine' must keep 4 different filters of 8\. Received: \[0, 0, 0, 0\]"):
        plan_pruning(keras.Sequential(stack), mine(), ratio=0.5)


def test_cut_that_depends_on_which_channels_go_is_solved_for():
    """Half of the channels feed a wide layer: how much a channel costs is not known from their number."""
    inputs = keras.Input((8, 8, 3))
    a, b = keras.ops.split(layers.Conv2D(64, 3, name="a")(inputs), [32], axis=-1)
    outputs = [layers.Conv2D(width, 3)(x) for width, x in ((64, a), (2, b))]
    model = keras.Model(inputs, outputs)
    kernel = np.ones((3, 3, 3, 64))
    for small in (slice(0, 32), slice(32, 64)):
        model.get_layer("a").kernel.assign(kernel * np.where(np.isin(np.arange(64), np.r_[small]), 0.1, 1.0))
        plan = plan_pruning(model, macs_reduction=0.3)
        assert 0.3 <= plan.macs_reduction <= 0.31


@pytest.mark.parametrize("params, macs", [(0.7, 0.4), (0.5, 0.5), (0.4, 0.55)])
def test_two_reductions_at_once(net, params, macs):
    plan = plan_pruning(net, params_reduction=params, macs_reduction=macs)
    assert params <= plan.params_reduction <= params + 0.02
    assert macs <= plan.macs_reduction <= macs + 0.02
    first, last = (
        1 - len(plan.kept[name]) / plan.widths[name] for name in ("stage1_block1_conv1", "stage3_block2_conv1")
    )
    assert (first < last) == (params > macs)  # late layers hold the parameters
    coarse = plan_pruning(net, params_reduction=params, macs_reduction=macs, round_to=8)
    assert coarse.params_reduction >= params and coarse.macs_reduction >= macs
    assert all(count % 8 == 0 for name, count in widths(coarse).items() if name != "logits")


def test_parameters_may_cost_more_macs_than_wanted():
    """A cut of 80 % of the parameters takes most of the MACs with it, whatever its place."""
    plan = plan_pruning(lenet5(), params_reduction=0.8, macs_reduction=0.05)
    assert 0.8 <= plan.params_reduction <= 0.82 and plan.macs_reduction > 0.05


def convolutions(*counts):
    model = keras.Sequential([keras.Input((8, 8, 3))])
    for count in counts:
        model.add(layers.Conv2D(count, 3, padding="same"))
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10))
    return model


@pytest.mark.parametrize(
    "counts, params, macs",
    [((32,), 0.8, 0.2), ((256, 128, 64, 32, 16), 0.8, 0.2), ((64,) * 6, 0.8, 0.2), ((32, 64), 0.95, 0.1)],
)
def test_neither_reduction_is_missed_where_one_brings_more_of_the_other(counts, params, macs):
    plan = plan_pruning(convolutions(*counts), params_reduction=params, macs_reduction=macs)
    assert plan.params_reduction >= params and plan.macs_reduction >= macs


def test_two_reductions_at_once_leave_no_layer_without_need():
    plan = plan_pruning(convolutions(*[64] * 6), params_reduction=0.5, macs_reduction=0.5)
    assert {len(kept) for kept in list(plan.kept.values())[:6]} <= {44, 45, 46}  # one ratio reaches both
    flat = plan_pruning(vgg16(), macs_reduction=0.7)
    tilted = plan_pruning(vgg16(), params_reduction=0.3, macs_reduction=0.7)
    assert flat.params_reduction > 0.6 and 0.3 <= tilted.params_reduction <= 0.31
    assert all(len(kept) >= 0.24 * len(flat.kept[name]) for name, kept in tilted.kept.items())


def test_target_between_two_steps_names_both():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"from 25.0% to 50.0%"):
        plan_pruning(model, macs_reduction=0.3)
    assert plan_pruning(model, macs_reduction=0.5).macs_reduction == 0.5


def test_ratios_may_remove_more_than_the_target():
    stack = [layers.Conv2D(32, 3, padding="same", name=f"conv{i}") for i in range(3)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *stack, layers.GlobalAveragePooling2D(), layers.Dense(10)])
    alone = plan_pruning(model, ratios={"conv0": 0.5})
    plan = plan_pruning(model, macs_reduction=0.1, ratios={"conv0": 0.5})
    assert plan.macs_reduction == alone.macs_reduction > 0.2
    assert widths(plan) == widths(alone)


def test_network_without_macs():
    model = keras.Sequential([keras.Input((5,)), layers.Embedding(20, 8), layers.LSTM(4)])
    assert plan_pruning(model, ratios={}).macs_reduction == 0
    with pytest.raises(ValueError, match="no macs to remove"):
        plan_pruning(model, macs_reduction=0.5)


@pytest.mark.parametrize(
    "criterion", ["l1", "geometric_median", "diversity", "redundancy", "distribution_fit", "random"]
)
def test_weights_that_are_not_finite_are_named(criterion):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(6, name="broken"), layers.Dense(2)])
    model.get_layer("broken").kernel.assign(np.where(np.eye(8, 6), np.nan, 1))
    with pytest.raises(ValueError, match="weights of layer 'broken' are not finite"):
        plan_pruning(model, criterion, ratio=0.5)


def test_examples_of_taylor_must_have_labels(images):
    x, y = images
    with pytest.raises(ValueError, match="Received: 32 and 16"):
        plan_pruning(lenet5(input_shape=(32, 32, 3)), criteria.Taylor(x, y[:16]), ratio=0.5)


def test_bn_gamma_without_batch_normalization_is_refused():
    with pytest.raises(ValueError, match="'bn_gamma' needs a BatchNormalization"):
        plan_pruning(lenet5(), "bn_gamma", ratio=0.5)


def test_plan_of_another_model_is_refused(net):
    plan = plan_pruning(net, ratio=0.5)
    with pytest.raises(ValueError, match="another network than 'resnet8'"):
        apply_plan(resnet(8), plan)
    with pytest.raises(ValueError, match="another network than 'resnet14'"):
        apply_plan(resnet(14, shortcut="B"), plan)
    with pytest.raises(ValueError, match="second plan is for another network"):
        plan.then(plan)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data["kept"].update(conv1=[0, 99]), r"damaged: of the 16 channels of layer 'conv1' it keeps"),
        (lambda data: data["kept"].update(conv1=[0, 1.5]), "damaged: of the 16 channels of layer 'conv1'"),
        (lambda data: data["kept"].update(conv1=[1, 0]), "damaged: of the 16 channels of layer 'conv1'"),
        (lambda data: data["kept"].update(nope=[0]), "damaged: of the None channels of layer 'nope'"),
        (lambda data: data["kept"].pop("conv1"), "it keeps None"),
        (lambda data: data["kept"].update(logits=[]), "must be kept whole|empties a layer"),
        (lambda data: data["after"].update(params=1), "damaged: what it keeps has .* parameters, it says 1"),
        (lambda data: data.pop("before"), "no pruning plan as `to_json` writes it: KeyError"),
        (lambda data: data["before"].pop("macs"), "no pruning plan"),
    ],
)
def test_damaged_plan_is_refused(net, damage, message):
    data = json.loads(plan_pruning(net, ratio=0.5).to_json())
    damage(data)
    with pytest.raises(ValueError, match=message):
        apply_plan(net, PruningPlan.from_json(json.dumps(data)))
    with pytest.raises(ValueError, match="no pruning plan"):
        PruningPlan.from_json("{")


def test_plan_that_leaves_nothing_to_read_is_refused():
    inputs = keras.Input((8, 8, 3))
    a, b = keras.ops.split(layers.Conv2D(6, 3, name="first")(inputs), [2], axis=-1)
    x = layers.Concatenate()([layers.Conv2D(4, 3, name="reader")(a), layers.Conv2D(4, 3)(b)])
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    data = json.loads(plan_pruning(model, ratios={}).to_json())
    data["kept"]["first"] = [2, 3, 4, 5]
    with pytest.raises(ValueError, match="leaves layer 'reader' no channel to read"):
        apply_plan(model, PruningPlan.from_json(json.dumps(data)))


def test_plan_that_parts_coupled_channels_is_refused(net):
    data = json.loads(plan_pruning(net, ratio=0.5).to_json())
    data["kept"]["conv1"] = data["kept"]["conv1"][1:]
    with pytest.raises(ValueError, match="coupled"):
        apply_plan(net, PruningPlan.from_json(json.dumps(data)))


def test_taylor_knows_sparse_and_absent_gradients(rng):
    keras.utils.set_random_seed(0)
    words = keras.Input((12,), dtype="int32")
    signals = layers.Embedding(20, 8, name="words")(words)
    other = keras.ops.stop_gradient(layers.Conv1D(6, 3, name="stopped")(signals))
    pooled = layers.GlobalMaxPooling1D()(layers.Add()([layers.Conv1D(6, 3)(signals), other]))
    model = keras.Model(words, layers.Dense(4)(pooled))
    x, y = rng.integers(0, 10, (16, 12)), rng.integers(0, 4, 16)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x)))
    table = model.get_layer("words").embeddings.value
    expected = np.sum(tf.convert_to_tensor(tape.gradient(loss, table)) * table, axis=0)
    products = weight_gradient_products(ChannelGraph(model), x, y)
    np.testing.assert_allclose(products["words"][:, 0], expected, rtol=1e-3, atol=1e-6)
    assert not products["stopped"].any()


def test_taylor_refuses_probabilities(net, images):
    with pytest.raises(ValueError, match="'taylor' judges must return logits"):
        prune_channels(
            keras.Sequential([net, layers.Softmax()]), criteria.Taylor(images, np.zeros(len(images), int)), ratio=0.5
        )


def test_bn_gamma_passes_over_what_is_skipped():
    class OwnNormalization(layers.BatchNormalization):
        pass

    x = keras.Input((8, 8, 3))
    y = OwnNormalization(name="own")(
        layers.Conv2D(8, 3)(layers.BatchNormalization()(layers.Conv2D(8, 3, name="first")(x)))
    )
    _, plan = prune_channels(keras.Model(x, layers.Flatten()(y)), "bn_gamma", ratio=0.5, skip=["own"])
    assert len(plan.kept["first"]) == 4


def test_network_without_channels_that_may_go():
    sigmoid = layers.Conv2D(4, 3, activation="sigmoid")
    model = keras.Sequential([keras.Input((8, 8, 3)), sigmoid, layers.Flatten(), layers.Dense(3)], name="gates")
    with pytest.raises(ValueError, match=r"'gates' has no channels that may go; print\(tfcompress\.ChannelGraph"):
        prune_channels(model, ratio=0.5)
    with pytest.raises(ValueError, match="cannot be reached"):
        prune_channels(model, macs_reduction=0.5)
