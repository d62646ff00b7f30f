"""Thresholds of the diversifying algorithm: what they remove, and solving for two cuts at once."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress import ChannelGraph, plan_pruning, profile, prune_channels
from tfcompress.criteria.diversity import cosine_similarities
from tfcompress.models import densenet, resnet
from tfcompress.surgery.thresholds import plan_by_thresholds, solve_thresholds

TARGETS = [(0.8, 0.5), (0.9, 0.7), (0.5, 0.2), (0.3, 0.5)]


def small_vgg(seed=0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((32, 32, 3))])
    for i, width in enumerate((16, 16, 32, 32, 64, 64, 128, 128)):
        model.add(layers.Conv2D(width, 3, padding="same", kernel_initializer="he_normal", name=f"conv{i + 1}"))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
        if i % 2:
            model.add(layers.MaxPooling2D(2))
    model.add(layers.Flatten())
    model.add(layers.Dense(10, name="logits"))
    return model


@pytest.fixture(scope="module")
def vgg():
    return small_vgg()


@pytest.mark.parametrize("params, macs", TARGETS)
def test_both_cuts_are_reached_and_hardly_exceeded(vgg, params, macs):
    thresholds = solve_thresholds(vgg, params_reduction=params, macs_reduction=macs)
    plan = plan_by_thresholds(vgg, thresholds)
    assert params <= plan.params_reduction <= params + 0.01
    assert macs <= plan.macs_reduction <= macs + 0.01
    assert all(-1 <= threshold <= 1 for threshold in thresholds.values())


@pytest.mark.parametrize("build", [lambda: resnet(14), lambda: densenet(16)], ids=["resnet", "densenet"])
def test_coupled_and_concatenated_channels(build):
    model = build()
    thresholds = solve_thresholds(model, params_reduction=0.4, macs_reduction=0.45)
    plan = plan_by_thresholds(model, thresholds)
    assert 0.4 <= plan.params_reduction <= 0.43 and 0.45 <= plan.macs_reduction <= 0.48


def test_no_two_filters_left_are_more_similar_than_the_threshold(vgg):
    """On each layer as sliced by those before it: the algorithm's definition."""
    thresholds = solve_thresholds(vgg, params_reduction=0.8, macs_reduction=0.5)
    plan = plan_by_thresholds(vgg, thresholds)
    graph = ChannelGraph(vgg)
    alive = graph.alive(plan.kept)
    for group in graph.groups:
        cosine = cosine_similarities(graph.filters(group, alive)[alive[group.classes]])
        np.fill_diagonal(cosine, -1)
        assert cosine.max() < thresholds[group.name], group.name


def test_the_same_widths_by_ratios_are_the_same_filters(vgg):
    thresholds = solve_thresholds(vgg, params_reduction=0.8, macs_reduction=0.5)
    plan = plan_by_thresholds(vgg, thresholds)
    ratios = {name: 1 - len(plan.kept[name]) / plan.widths[name] for name in thresholds}
    again = plan_pruning(vgg, "diversity", ratios=ratios)
    for name, kept in plan.kept.items():
        np.testing.assert_array_equal(again.kept[name], kept)
    smaller, other = prune_channels(vgg, "l1", ratios=ratios)
    assert other.after == plan.after and profile(smaller).params == plan.after.params


def test_similar_layers_lose_more():
    """Two layers of one width, whose filters repeat in the one: there the more go."""
    model = small_vgg()
    kernel = np.array(model.get_layer("conv7").kernel)
    kernel[..., 64:] = kernel[..., :64] + 0.3 * kernel[..., 64:]
    model.get_layer("conv7").kernel.assign(kernel)
    plan = plan_by_thresholds(model, solve_thresholds(model, params_reduction=0.5, macs_reduction=0.3))
    assert len(plan.kept["conv7"]) < len(plan.kept["conv8"])


def test_some_filters_stay_whatever_the_threshold(vgg):
    everything = dict.fromkeys([group.name for group in ChannelGraph(vgg).groups], -1.0)
    kept = plan_by_thresholds(vgg, everything, min_kept=0.25).kept
    assert [len(kept[f"conv{i}"]) for i in (1, 4, 8)] == [4, 8, 32]
    plan = plan_by_thresholds(vgg, {"conv4": -1.0}, min_kept=0.25)
    assert len(plan.kept["conv4"]) == 8 and len(plan.kept["conv5"]) == 64


@pytest.mark.parametrize(("min_kept", "kept"), [(0.9, 9), (0.8, 8), (0.85, 9), (1.0, 10)])
def test_exactly_so_many_filters_stay(min_kept, kept):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(10, name="dense"), layers.Dense(2, name="logits")])
    assert len(plan_by_thresholds(model, {"dense": -1.0}, min_kept=min_kept).kept["dense"]) == kept


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_of_parallel_filters_are_cosines(seed):
    stack = [layers.Conv2D(16, 3, name=f"conv{i}") for i in range(3)]
    model = keras.Sequential([keras.Input((16, 16, 3)), *stack, layers.GlobalAveragePooling2D(), layers.Dense(4)])
    rng = np.random.default_rng(seed)
    for layer in stack:
        kernel = rng.normal(size=layer.kernel.shape)
        kernel[..., 8:] = 2 * kernel[..., :8]
        layer.kernel.assign(kernel)
    thresholds = solve_thresholds(model, params_reduction=0.2, macs_reduction=0.2)
    assert max(thresholds.values()) <= 1
    plan = plan_by_thresholds(model, thresholds)
    assert plan.params_reduction >= 0.2 and plan.macs_reduction >= 0.2


def test_thresholds_of_a_layer_with_several_groups():
    inputs = keras.Input((8, 8, 3))
    a, b = keras.ops.split(layers.Conv2D(64, 3, name="a")(inputs), [32], axis=-1)
    model = keras.Model(inputs, layers.Add()([layers.Conv2D(32, 3, padding="same", name="b")(a), b]))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(model.output)))
    names = [group.name for group in ChannelGraph(model).groups]
    assert names == ["a", "a#2"]
    thresholds = solve_thresholds(model, params_reduction=0.4, macs_reduction=0.4)
    plan = plan_by_thresholds(model, thresholds)
    assert set(thresholds) == set(names) and plan.params_reduction >= 0.4 and plan.macs_reduction >= 0.4


def test_parameters_may_cost_more_macs_than_wanted():
    model = keras.Sequential([keras.Input((16, 16, 3))])
    for i in range(5):
        model.add(layers.Conv2D(256 >> i, 3, padding="same", name=f"conv{i}"))
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10))
    plan = plan_by_thresholds(model, solve_thresholds(model, params_reduction=0.6, macs_reduction=0.3))
    assert 0.6 <= plan.params_reduction <= 0.62 and plan.macs_reduction >= 0.3


def test_skipped_layers_stay_whole(vgg):
    thresholds = solve_thresholds(vgg, params_reduction=0.4, macs_reduction=0.4, skip=["conv8"])
    assert "conv8" not in thresholds
    assert len(plan_by_thresholds(vgg, thresholds, skip=["conv8"]).kept["conv8"]) == 128


def test_bad_arguments_are_named(vgg):
    for min_kept in (0, 1.5):
        with pytest.raises(ValueError, match=rf"min_kept must be in \(0, 1\]\. Received: {min_kept}"):
            plan_by_thresholds(vgg, {"conv4": 0.5}, min_kept=min_kept)
        with pytest.raises(ValueError, match="min_kept must be"):
            solve_thresholds(vgg, params_reduction=0.5, macs_reduction=0.5, min_kept=min_kept)
    with pytest.raises(ValueError, match=r"nearest name is 'conv8'"):
        plan_by_thresholds(vgg, {"conv88": 0.5})
    with pytest.raises(ValueError, match="without channels that can be removed: 'logits'"):
        plan_by_thresholds(vgg, {"logits": 0.5})
    with pytest.raises(ValueError, match="coupled to 'conv1', which stands for it: 'stage1_block1_conv2'"):
        plan_by_thresholds(resnet(8), {"stage1_block1_conv2": 0.5})
    with pytest.raises(ValueError, match=r"thresholds\['conv1'\]"):
        plan_by_thresholds(vgg, {"conv1": 1.5})
    with pytest.raises(ValueError, match="must be in"):
        solve_thresholds(vgg, params_reduction=1.5, macs_reduction=0.5)
    with pytest.raises(ValueError, match="cannot be reached: the most is"):
        solve_thresholds(vgg, params_reduction=0.5, macs_reduction=0.9, min_kept=0.5)
