"""How much accuracy each layer costs when only it is pruned (Li et al. 2017, section 3.2)."""

from dataclasses import dataclass, field

import numpy as np

from tfcompress.datasets.arrays import as_classes
from tfcompress.files import replacing
from tfcompress.graph import as_inputs
from tfcompress.outputs import check_classifier
from tfcompress.profiling import table
from tfcompress.surgery.channel_graph import ChannelGraph
from tfcompress.surgery.prune import prune_channels

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` returns; `str()` is a table.

    Attributes:
        baseline: accuracy of the whole network, in [0, 1].
        accuracy: {layer name: {ratio: accuracy with only this layer, and those coupled to it, pruned}}.
    """

    baseline: float
    accuracy: dict = field(hash=False)

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


def sensitivity(model, x, y, layers=None, ratios=RATIOS, criterion="l1", skip=(), batch_size=256):
    """Measures the accuracy of a classifier after pruning one layer at a time, without fine-tuning.

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

    Returns:
        A `Sensitivity`.

    Raises:
        ValueError: a model that is no classifier with one input, no examples, or fractions for a model that takes
            integers.
    """
    check_classifier(model)
    (x,), y = as_inputs(model, x), as_classes(y)
    if not len(y):
        raise ValueError("sensitivity needs examples. Received: none")
    firsts = dict.fromkeys(next(iter(group.positions)) for group in ChannelGraph(model, skip).groups)
    accuracy = {}
    for layer in layers or firsts:
        # Where a layer holds several groups, those that another layer stands for are measured there.
        others = dict.fromkeys(firsts, 0.0) if layer in firsts else {}
        accuracy[layer] = {}
        for ratio in ratios:
            pruned, _ = prune_channels(model, criterion, ratios={**others, layer: ratio}, skip=skip)
            accuracy[layer][ratio] = _accuracy(pruned, x, y, batch_size)
    return Sensitivity(_accuracy(model, x, y, batch_size), accuracy)


def _accuracy(model, x, y, batch_size):
    return float(np.mean(model.predict(x, batch_size, verbose=0).argmax(axis=-1) == y))
