"""Which kernels can be sparse, and how a total sparsity is shared out among them."""

import numpy as np

from tfcompress.errors import listed

_PRUNABLE = frozenset(
    {
        "Dense",
        *(f"Conv{n}D{transpose}" for n in (1, 2, 3) for transpose in ("", "Transpose")),
        *(f"{kind}Conv{n}D" for kind in ("Depthwise", "Separable") for n in (1, 2)),
    }
)


def sparsity_of(model):
    """The fraction of exact zeros among the kernels of all convolutions and dense layers of a model, also frozen ones.

    Recurrent layers, attention, EinsumDense and layers inside a TimeDistributed or SpectralNormalization do not count,
    nor do the identities that quantization-aware training adds.

    Args:
        model: a Keras 3 or tf_keras model, also one wrapped for quantization-aware training.

    Returns:
        A float in [0, 1].
    """
    values = [np.ravel(kernel) for kernels in _kernels(model, _is_of_the_network).values() for kernel in kernels]
    return float(sum(np.sum(value == 0) for value in values) / max(sum(map(np.size, values)), 1))


def prunable_kernels(model, depthwise=True):
    """The kernels of all trainable convolutions and dense layers.

    Frozen layers, kernels that Keras has quantized or that only LoRA trains, and layers that `sparsity_of` leaves out
    stay as they are.

    Args:
        model: a Keras 3 or tf_keras model.
        depthwise: whether depthwise kernels count, those of separable convolutions too.

    Returns:
        {layer name: list of variables}; a layer of a nested model is named "outer/inner".
    """

    def counts(layer):
        inner = _unwrapped(layer)
        return inner.trainable and (depthwise or not type(inner).__name__.startswith("Depthwise"))

    def chosen(kernel):
        return kernel.trainable and (depthwise or "depthwise" not in kernel.name)

    found = {name: [*filter(chosen, kernels)] for name, kernels in _kernels(model, counts).items()}
    return {name: kernels for name, kernels in found.items() if kernels}


def _kernels(model, counts):
    found = {}
    for layer in model.layers:
        if hasattr(layer, "layers"):
            nested = _kernels(layer, counts)
            found.update({f"{layer.name}/{name}": kernels for name, kernels in nested.items()})
            continue
        inner = _unwrapped(layer)
        if type(inner).__name__ in _PRUNABLE and counts(layer):
            # The wrapper's weights, by the variables' names: quantization puts a tensor in the place of the inner
            # layer's attribute.
            found[inner.name] = [v for v in layer.weights if v.name.split("/")[-1].split(":")[0].endswith("kernel")]
    return found


def _unwrapped(layer):
    return layer.layer if type(layer).__name__ == "QuantizeWrapperV2" else layer


def _is_of_the_network(layer):
    """False for the fixed 1x1 depthwise convolutions that quantization-aware training puts in for scalings."""
    inner = _unwrapped(layer)
    fixed = inner is not layer and not inner.trainable
    return not (fixed and type(inner).__name__ == "DepthwiseConv2D" and inner.kernel_size == (1, 1))


def allocate(model, sparsity, allocation="lamp"):
    """Shares out a total sparsity among the layers.

    "uniform" gives every layer the same. "lamp" ranks all weights by the score of Lee et al. 2021 ("Layer-adaptive
    sparsity for the magnitude-based pruning", eq. 2), w_u^2 / sum of w_v^2 over the weights v of the same layer with
    |w_v| >= |w_u|, and takes the lowest; every layer keeps at least its largest weight.

    Args:
        model: a Keras 3 or tf_keras model.
        sparsity: the fraction of all prunable weights to be zero, in [0, 1).
        allocation: "lamp", "uniform", or {layer name: sparsity}; the layers that a dict does not name share what is
            missing to the total by LAMP.

    Returns:
        {layer name: sparsity in [0, 1)} for all prunable layers.

    Raises:
        ValueError: a sparsity outside [0, 1), an unknown layer or allocation, a total that cannot be reached, or no
            prunable layer.
    """
    check_sparsity(sparsity)
    weights = {name: np.concatenate([np.ravel(k) for k in ks]) for name, ks in prunable_kernels(model).items()}
    if sparsity > 0 and not weights:
        others = [layer.name for layer in model.layers if any(len(weight.shape) > 1 for weight in layer.weights)]
        raise ValueError(
            f"{model.name!r} has no weights to prune: trainable convolutions or dense layers are expected. Received: "
            f"{listed(others) or 'no kernels'}. Set trainable = True where they are frozen"
        )
    fixed = allocation if isinstance(allocation, dict) else {}
    for name, value in fixed.items():
        check_sparsity(value, f"allocation[{name!r}]")
        if name not in weights:
            raise ValueError(f"allocation names {name!r}; the prunable layers are {', '.join(weights)}")
    rest = {name: w for name, w in weights.items() if name not in fixed}
    zeros = sparsity * sum(map(np.size, weights.values())) - sum(fixed[name] * weights[name].size for name in fixed)
    open_share = zeros / max(sum(map(np.size, rest.values())), 1)
    if not -1e-3 <= open_share < 1 if rest else abs(zeros) >= 1:
        raise ValueError(f"a total sparsity of {sparsity} cannot be reached with {allocation}")
    if allocation == "uniform":
        return dict.fromkeys(rest, sparsity)
    if allocation != "lamp" and not fixed:
        raise ValueError(f"allocation must be 'lamp', 'uniform' or a dict of sparsities. Received: {allocation!r}")
    return {**fixed, **_lamp(rest, max(open_share, 0.0))}


def check_sparsity(value, name="sparsity"):
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1). Received: {value}")


def _lamp(weights, sparsity):
    if not weights:
        return {}
    scores = np.concatenate([_lamp_scores(w) for w in weights.values()])
    removed = np.zeros(scores.size, bool)
    removed[np.argsort(scores, kind="stable")[: round(sparsity * scores.size)]] = True
    ends = np.cumsum([w.size for w in weights.values()])
    parts = dict(zip(weights, np.split(removed, ends[:-1])))
    return {name: min(float(part.mean()), 1 - 1 / part.size) for name, part in parts.items()}


def _lamp_scores(weights):
    squares = np.sort(np.square(weights, dtype="float64"))
    at_least_as_large = np.cumsum(squares[::-1])[::-1]
    return squares / np.maximum(at_least_as_large, np.finfo("float64").tiny)
