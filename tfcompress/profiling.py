"""Parameters, multiply-accumulates and size of a Keras model, per layer and in total."""

import math
from dataclasses import dataclass

from keras import layers

from tfcompress.graph import model_inputs, walk

_CONVOLUTIONS = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
)
_TRANSPOSED_CONVOLUTIONS = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
STATISTICS = {
    layers.BatchNormalization: ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev"),
    layers.Normalization: ("adapt_mean", "adapt_variance", "count"),
}


@dataclass(frozen=True)
class LayerProfile:
    """One layer: its path, its class, the shape of its (last) output, its parameters and its MACs.

    `macs` is None where the spatial size is unknown.
    """

    name: str
    kind: str
    output_shape: tuple
    params: int
    macs: int | None


@dataclass(frozen=True)
class Profile:
    """What `profile` returns; `str()` is a table."""

    layers: tuple

    @property
    def params(self):
        """Parameters, without BatchNorm's moving statistics."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self):
        """Multiply-accumulates of one example, or None if the model's spatial size is open."""
        macs = [layer.macs for layer in self.layers]
        return None if None in macs else sum(macs)

    @property
    def float32_bytes(self):
        """Size of the parameters in bytes, four each."""
        return 4 * self.params

    def __str__(self):
        rows = [(x.name, x.kind, str(x.output_shape), f"{x.params:,}", _number(x.macs)) for x in self.layers]
        rows.append(("total", "", "", f"{self.params:,}", _number(self.macs)))
        return table(("layer", "kind", "output shape", "params", "MACs"), rows)


def profile(model):
    """Counts the parameters and the multiply-accumulates of a model.

    MACs are those of one example through convolutions and dense layers, as papers count them; every other layer
    counts zero. A shared layer has its parameters counted once and its MACs per call.

    Args:
        model: a Sequential or functional Keras model that is built; nested models are entered.

    Returns:
        A `Profile`.

    Raises:
        ValueError: if the model is subclassed or not built.
    """
    found = {}

    def visit(call):
        previous = found.get(id(call.operation))
        macs = _add(previous.macs if previous else 0, call_macs(call))
        shape = tuple(call.outputs[-1].shape)
        found[id(call.operation)] = LayerProfile(
            call.name, type(call.operation).__name__, shape, parameters(call.operation), macs
        )
        return [None] * len(call.outputs)

    walk(model, [None] * len(model_inputs(model)), visit)
    return Profile(tuple(found.values()))


def parameters(operation):
    """Number of parameters of a layer, without statistics; zero for a raw operation."""
    return sum(math.prod(weight.shape) for weight in counted_weights(operation))


def counted_weights(operation):
    """The weights of a layer that count as parameters: all but the statistics of a normalization."""
    statistics = {id(variable) for variable in _statistics(operation)}
    return [weight for weight in getattr(operation, "weights", ()) if id(weight) not in statistics]


def call_macs(call):
    """MACs of one call: each kernel weight is used once per position. None if the spatial size is open."""
    count = positions(call)
    return None if count is None else count * sum(math.prod(kernel.shape) for kernel in kernels(call.operation))


def kernels(operation):
    """The kernels of a convolution or dense layer (a separable convolution has two), else none."""
    if not isinstance(operation, (*_CONVOLUTIONS, *_TRANSPOSED_CONVOLUTIONS, layers.Dense)):
        return []
    return [weight for weight in operation.weights if len(weight.shape) > 1]


def positions(call):
    """How many times one example uses each weight of the call's kernels. None if the spatial size is open."""
    operation = call.operation
    if isinstance(operation, layers.Dense):
        spatial = call.outputs[0].shape[1:-1]
    elif isinstance(operation, (*_CONVOLUTIONS, *_TRANSPOSED_CONVOLUTIONS)):
        side = call.inputs if isinstance(operation, _TRANSPOSED_CONVOLUTIONS) else call.outputs
        shape = side[0].shape
        spatial = shape[2:] if operation.data_format == "channels_first" else shape[1:-1]
    else:
        return 0
    return None if None in spatial else math.prod(spatial)


def table(header, rows):
    """Lays out rows of strings under a header; all columns but the first two are right-aligned."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, tuple("-" * width for width in widths), *rows):
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def cost_table(title, costs):
    """Lays out rows (what, before, after), with what was removed in percent; without those that are not known."""
    rows = [
        (what, "", f"{before:,}", f"{after:,}", f"{removed(before, after):.1%}")
        for what, before, after in costs
        if None not in (before, after)
    ]
    return table((title, "", "before", "after", "removed"), rows)


def removed(before, after):
    """The fraction of a count that is gone; none of nothing."""
    return 1 - after / before if before else 0.0


def _statistics(operation):
    for kind, names in STATISTICS.items():
        if isinstance(operation, kind):
            return [getattr(operation, name) for name in names if hasattr(operation, name)]
    return []


def _add(a, b):
    return None if a is None or b is None else a + b


def _number(count):
    return "?" if count is None else f"{count:,}"
