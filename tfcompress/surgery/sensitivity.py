"""What each layer costs when only it is pruned (Li et al. 2017, section 3.2)."""

import json
import math
import sys
from dataclasses import dataclass, field

import keras
import numpy as np

from tfcompress import criteria
from tfcompress.datasets.arrays import as_classes, sample
from tfcompress.files import replacing
from tfcompress.graph import as_inputs, walk
from tfcompress.outputs import check_classifier, check_no_sigmoid, divergence, ends_in_softmax, two_classes
from tfcompress.profiling import table
from tfcompress.surgery.channel_graph import ChannelGraph
from tfcompress.surgery.chooser import Chooser, fixed_counts
from tfcompress.surgery.rebuild import rebuild
from tfcompress.surgery.recalibration import run_on_statistics_of_batch

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, repr=False)
class Sensitivity:
    """What `sensitivity` returns; `str()` is a table.

    Attributes:
        baseline: accuracy of the whole network, in [0, 1], with BatchNorms as in all that follows: on statistics of
            the batch.
        accuracy: {layer name: {ratio: accuracy with only this layer, and those coupled to it, pruned}}.
        divergence: {layer name: {ratio: mean Kullback-Leibler divergence of the probabilities of that network from
            those of the whole one, in nats}}. It tells layers apart whose accuracy is the same.

    Raises:
        ValueError: numbers that are none of these.
    """

    baseline: float
    accuracy: dict = field(hash=False)
    divergence: dict = field(hash=False)

    def __post_init__(self):
        for what, curves, most in (("accuracy", self.accuracy, 1), ("divergence", self.divergence, np.inf)):
            for layer, curve in curves.items():
                for ratio, value in curve.items():
                    if not (0 < ratio < 1 and 0 <= value <= most and np.isfinite(value)):
                        raise ValueError(f"No {what} of a ratio of {layer!r}: {value} at {ratio}")
        if not 0 <= self.baseline <= 1:
            raise ValueError(f"baseline must be an accuracy in [0, 1]. Received: {self.baseline}")

    def ratios(self, max_drop):
        """The largest measured ratio of each layer that costs at most `max_drop` of accuracy (a fraction, alone).

        Returns:
            {layer name: ratio}, zero where no measured ratio is that harmless: `prune_channels(..., ratios=...)`.
        """
        chosen = {}
        for layer, curve in self.accuracy.items():
            harmless = [ratio for ratio, accuracy in curve.items() if accuracy >= self.baseline - max_drop - 1e-9]
            chosen[layer] = max(harmless, default=0.0)
        return chosen

    def to_json(self):
        """The measurements as a JSON string."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text):
        """The measurements from `to_json`'s string.

        Raises:
            ValueError: it holds none, or damaged ones.
        """
        try:
            data = json.loads(text)
            curves = [
                {
                    layer: {float(ratio): float(value) for ratio, value in curve.items()}
                    for layer, curve in data[name].items()
                }
                for name in ("accuracy", "divergence")
            ]
            return cls(float(data["baseline"]), *curves)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"These are no sensitivities as `to_json` writes them: {error!r}") from error

    def plot(self, path):
        """Draws accuracy over ratio, one line per layer, into an image file."""
        import matplotlib

        figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        for layer, curve in self.accuracy.items():
            axes.plot([0, *curve], [self.baseline, *curve.values()], marker="o", markersize=3, label=layer)
        axes.set(xlabel="fraction of channels removed", ylabel="accuracy", ylim=(0, 1))
        axes.legend(fontsize=6, ncols=1 + len(self.accuracy) // 20, loc="center left", bbox_to_anchor=(1, 0.5))
        with replacing(path) as part:
            figure.savefig(part, dpi=150)

    def __repr__(self):
        return f"<Sensitivity of {len(self.divergence)} layers>"

    def __str__(self):
        ratios = list(next(iter(self.accuracy.values()), {}))
        rows = [
            (layer, "", *(f"{accuracy:.2%}" for accuracy in curve.values())) for layer, curve in self.accuracy.items()
        ]
        header = ("layer", "", *(f"-{ratio:.0%}" for ratio in ratios))
        return f"accuracy of the whole network: {self.baseline:.2%}\n{table(header, rows)}"


def sensitivity(model, x, y, layers=None, ratios=RATIOS, criterion="l1", skip=(), batch_size=256, verbose=False):
    """Measures what a classifier loses when one layer at a time is pruned, without fine-tuning.

    BatchNorms that are not frozen take the statistics of each batch, in the whole network, too: much like those that
    `recalibrate` would measure. A layer that surgery changes beyond its width (see `register_rule`) is measured without
    that change.

    Args:
        model: a Sequential or functional classifier (logits or probabilities).
        x: held-out inputs, not test images, as the model takes them; uint8 pixels are divided by 255 where it takes
            floats. A few hundred do; their order does not matter.
        y: their class indices, (N,), or one-hot.
        layers: names of the layers to measure; by default one of each set of coupled layers.
        ratios: fractions of the channels to remove, each in (0, 1).
        criterion, skip: as for `prune_channels`, and the same there as here.
        batch_size: examples per batch, at most; all batches are about as large.
        verbose: whether stderr shows how far it is.

    Returns:
        A `Sensitivity`.

    Raises:
        ValueError: a model that is no classifier with one input or whose outputs are not finite, no examples or other
            than one label for each, fractions for a model that takes integers, layers without channels that may go,
            ratios outside (0, 1).

    Example:

    ```python
    measured = sensitivity(model, x, y, criterion="l2")
    smaller, plan = prune_channels(model, "l2", macs_reduction=0.5, scope=measured)
    ```
    """
    model = two_classes(model)
    check_classifier(model)
    check_no_sigmoid(model)
    (x,), y = as_inputs(model, x), as_classes(y)
    if not len(y) or len(x) != len(y):
        raise ValueError(f"sensitivity needs examples, each with a label. Received: {len(x)} and {len(y)} labels")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1. Received: {batch_size}")
    graph = ChannelGraph(model, skip)
    layers, ratios = _checked(graph, layers, [float(ratio) for ratio in ratios])
    chooser = Chooser(graph, criteria.get(criterion), round_to=1)
    whole = {index: len(group) for index, group in enumerate(graph.groups)}
    network = _OnStatisticsOfBatch(rebuild(graph, np.ones(len(graph.frozen), bool)))
    x, y = sample(len(y), x, y)
    batches = np.array_split(x, math.ceil(len(x) / batch_size))
    reference = _logits(network, batches)
    if not np.isfinite(reference).all():
        raise ValueError(f"Model {model.name!r} returns numbers that are not finite: it has no divergence from others")
    accuracy, damage = {}, {}
    for number, layer in enumerate(layers, 1):
        accuracy[layer], damage[layer] = {}, {}
        for ratio in ratios:
            counts = {**whole, **fixed_counts(graph, {**layers[layer], layer: ratio}, round_to=1)}
            _silence(network.network, graph, chooser.alive(counts))
            logits = _logits(network, batches)
            accuracy[layer][ratio] = _accuracy(logits, y)
            damage[layer][ratio] = divergence(reference, logits)
        if verbose:
            print(f"measured {number} of {len(layers)} layers: {layer}", file=sys.stderr, flush=True)
    return Sensitivity(_accuracy(reference, y), accuracy, damage)


def _checked(graph, layers, ratios):
    """The layers to measure, {name: {other layer: 0.0}} of those that stay whole then; and the ratios."""
    if isinstance(layers, str):
        raise ValueError(f"layers must be a list of names. Received: {layers!r}")
    firsts = dict.fromkeys((next(iter(group.positions)) for group in graph.groups), 0.0)
    layers = list(firsts if layers is None else layers)
    for name in layers:
        graph.check_layer("layers", name)
        if not any(name in group.positions for group in graph.groups):
            raise ValueError(f"layers names a layer without channels that can be removed: {name!r}")
    for ratio in ratios:
        if not 0 < ratio < 1:
            raise ValueError(f"ratios must be in (0, 1). Received: {ratio}")
    # Where a layer holds several groups, those that another layer stands for are measured there.
    return {name: firsts if name in firsts else {} for name in layers}, ratios


def _silence(network, graph, alive):
    """Gives a copy of the graph's model its weights, with zeros where surgery would cut: it computes the same."""
    for variable, original in zip(network.weights, graph.model.weights, strict=True):
        values = np.array(original)
        for axis, kept in graph.indices(original, alive).items():
            removed = np.ones(values.shape[axis], bool)
            removed[kept] = False
            np.moveaxis(values, axis, 0)[removed] = 0
        variable.assign(values)


def _logits(model, batches):
    outputs = np.concatenate([np.asarray(model.predict_on_batch(batch), "float32") for batch in batches])
    # The logarithms of probabilities are logits.
    return np.log(np.maximum(outputs, np.finfo("float32").tiny)) if ends_in_softmax(model.network) else outputs


class _OnStatisticsOfBatch(keras.Model):
    """A network whose BatchNorms, but for frozen ones, take the statistics of each batch; all else is inference."""

    def __init__(self, network):
        super().__init__(name="on_statistics_of_batch")
        self.network = network

    def call(self, inputs):
        (output,) = walk(self.network, [inputs], run_on_statistics_of_batch)
        return output


def _accuracy(logits, y):
    return float(np.mean(logits.argmax(axis=-1) == y))
