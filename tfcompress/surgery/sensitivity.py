"""What each layer costs when only it is pruned (Li et al. 2017, section 3.2)."""

import json
import math
import sys
from dataclasses import dataclass, field

import keras
import numpy as np

from tfcompress import criteria
from tfcompress.datasets.arrays import as_classes
from tfcompress.files import replacing
from tfcompress.graph import as_inputs, copy_model, walk
from tfcompress.outputs import check_classifier, divergence, ends_in_softmax
from tfcompress.profiling import table
from tfcompress.surgery.channel_graph import ChannelGraph
from tfcompress.surgery.chooser import Chooser, first_layer, fixed_counts
from tfcompress.surgery.recalibration import run_on_statistics_of_batch

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` returns; `str()` is a table.

    Attributes:
        baseline: accuracy of the whole network, in [0, 1].
        accuracy: {layer name: {ratio: accuracy with only this layer, and those coupled to it, pruned}}.
        divergence: {layer name: {ratio: mean Kullback-Leibler divergence of the probabilities of that network from
            those of the whole one, in nats}}. It tells layers apart whose accuracy is the same.
    """

    baseline: float
    accuracy: dict = field(hash=False)
    divergence: dict = field(hash=False)

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

    def __str__(self):
        ratios = list(next(iter(self.accuracy.values()), {}))
        rows = [
            (layer, "", *(f"{accuracy:.2%}" for accuracy in curve.values())) for layer, curve in self.accuracy.items()
        ]
        header = ("layer", "", *(f"-{ratio:.0%}" for ratio in ratios))
        return f"accuracy of the whole network: {self.baseline:.2%}\n{table(header, rows)}"


def sensitivity(model, x, y, layers=None, ratios=RATIOS, criterion="l1", skip=(), batch_size=256, verbose=False):
    """Measures what a classifier loses when one layer at a time is pruned, without fine-tuning.

    BatchNorms take the statistics of each batch, as after `recalibrate`, in the whole network, too.

    Args:
        model: a Sequential or functional classifier (logits or probabilities).
        x: held-out inputs, not test images, as the model takes them; uint8 pixels are divided by 255 where it takes
            floats.
        y: their class indices, (N,), or one-hot.
        layers: names of the layers to measure; by default one of each set of coupled layers.
        ratios: fractions of the channels to remove, each in (0, 1).
        criterion: as for `prune_channels`.
        skip: as for `prune_channels`.
        batch_size: examples per batch of prediction.
        verbose: whether stderr shows how far it is.

    Returns:
        A `Sensitivity`.

    Raises:
        ValueError: a model that is no classifier with one input, no examples, or fractions for a model that takes
            integers.

    Example:

    ```python
    measured = sensitivity(model, x, y, criterion="l2")
    smaller, plan = prune_channels(model, "l2", macs_reduction=0.5, scope=measured)
    ```
    """
    check_classifier(model)
    (x,), y = as_inputs(model, x), as_classes(y)
    if not len(y):
        raise ValueError("sensitivity needs examples. Received: none")
    graph = ChannelGraph(model, skip)
    chooser = Chooser(graph, criteria.get(criterion), round_to=1)
    whole = {index: len(group) for index, group in enumerate(graph.groups)}
    firsts = dict.fromkeys(first_layer(group) for group in graph.groups)
    network = _Recalibrated(copy_model(model))
    # Of one size, so that no batch is too small for statistics.
    batch_size = math.ceil(len(y) / math.ceil(len(y) / batch_size))
    reference = _logits(network, x, batch_size)
    accuracy, damage = {}, {}
    for number, layer in enumerate(layers or firsts, 1):
        # Where a layer holds several groups, those that another layer stands for are measured there.
        others = dict.fromkeys(firsts, 0.0) if layer in firsts else {}
        accuracy[layer], damage[layer] = {}, {}
        for ratio in ratios:
            counts = {**whole, **fixed_counts(graph, {**others, layer: ratio}, round_to=1)}
            _silence(network.network, graph, chooser.alive(counts))
            logits = _logits(network, x, batch_size)
            accuracy[layer][ratio] = _accuracy(logits, y)
            damage[layer][ratio] = divergence(reference, logits)
        if verbose:
            print(f"measured {number} of {len(layers or firsts)} layers: {layer}", file=sys.stderr, flush=True)
    return Sensitivity(_accuracy(reference, y), accuracy, damage)


def _silence(network, graph, alive):
    """Gives a copy of the graph's model its weights, with zeros where surgery would cut: it computes the same."""
    for variable, original in zip(network.weights, graph.model.weights, strict=True):
        values = np.array(original)
        for axis, kept in graph.indices(original, alive).items():
            removed = np.ones(values.shape[axis], bool)
            removed[kept] = False
            np.moveaxis(values, axis, 0)[removed] = 0
        variable.assign(values)


def _logits(model, x, batch_size):
    outputs = model.predict(x, batch_size, verbose=0)
    # The logarithms of probabilities are logits.
    return np.log(np.maximum(outputs, np.finfo("float32").tiny)) if ends_in_softmax(model.network) else outputs


class _Recalibrated(keras.Model):
    """A network whose BatchNorms, but for frozen ones, take the statistics of each batch; all else is inference."""

    def __init__(self, network):
        super().__init__(name="recalibrated")
        self.network = network

    def call(self, inputs):
        (output,) = walk(self.network, [inputs], run_on_statistics_of_batch)
        return output


def _accuracy(logits, y):
    return float(np.mean(logits.argmax(axis=-1) == y))
