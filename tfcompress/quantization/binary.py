"""Binary weights: every filter's weights are plus or minus one number (BinaryConnect, BWN)."""

import functools

import keras

from tfcompress.errors import listed
from tfcompress.graph import clone_uncompiled, copy_model, copy_operation, copy_trainable, copy_weights, layer_names
from tfcompress.sparsity import prunable_kernels
from tfcompress.surgery.channel_graph import as_skip, check_skip, is_skipped


def binarize(model, x, y, config, *, skip=None, teacher=None, validation=None, directory=None):
    """Trains a network whose weights are binary: alpha sign(W), with an alpha for each filter.

    Rastegari et al. 2016 ("XNOR-Net", section 3.1): alpha is the mean of |W| over the filter (eq. 6), the best scale
    for its signs. The signs compute forward and backward; what learns are the float weights W behind them, which take
    the gradient as if the sign were not there (Courbariaux et al. 2015, "BinaryConnect", algorithm 1), unless they are
    outside [-1, 1]. Inputs of layers stay floats, and int8 in a file: no kernel of TFLite multiplies bits. So nothing
    gets faster; an int8 file holds exactly these weights, and compresses to about one bit for each.

    Args:
        model: a Keras 3 model, trained. It is not changed. The scale of a filter suits layers with a BatchNorm behind
            them best.
        x: training images, as `tfcompress.training.fit` takes them.
        y: (N,) integer labels.
        config: a `TrainingConfig`. Signs take many epochs to settle: as many as a training from the start, say.
        skip: names of layers, or of nested models, whose weights stay floats; by default the first and the last
            convolution or dense layer, which accuracy hangs on. Depthwise kernels always stay.
        teacher: a model to be distilled from, a `CachedTeacher`, or None.
        validation: (images, labels) to measure after each epoch, or None.
        directory: where the checkpoints go, or None. The same call resumes there.

    Returns:
        A plain Keras model of the same layers whose weights are binary. Training it on would undo that.

    Raises:
        ValueError: a name in `skip` that is no layer's, a model that is not built, subclassed or ends in a softmax, or
            one without kernels to binarize.
        FloatingPointError, CheckpointError: as `fit` raises them.
    """
    from tfcompress.training import fit

    names = layer_names(model)
    found = prunable_kernels(model, depthwise=False)
    order = [name for name in names if name in found]
    skip = {*order[:1], *order[-1:]} if skip is None else as_skip(skip)
    check_skip(skip, names)
    chosen = {name for name in order if not is_skipped(name, skip)}
    if not chosen:
        raise ValueError(
            f"{model.name!r} has no weights to binarize: trainable convolutions or dense layers besides skip="
            f"{sorted(skip)} are expected. Received: {listed(names)}"
        )
    kernels = {id(kernel) for name in chosen for kernel in found[name]}

    def binary_layer(layer):
        binary = isinstance(layer, keras.Layer) and any(id(weight) in kernels for weight in layer.weights)
        cls = _binary_class(type(layer)) if binary else type(layer)
        return copy_operation(layer, cls) if isinstance(layer, keras.Layer) else layer

    trained = copy_model(model, clone_function=binary_layer, recursive=True)
    options = {"validation": validation, "teacher": teacher, "directory": directory}
    fit(trained, x, y, config, identity={"binary": sorted(chosen)}, **options)
    result = clone_uncompiled(model, clone_function=copy_operation)
    copy_trainable(model, result)
    copy_weights(trained, result)
    for layer in trained._flatten_layers():
        for kernel in _kernels(layer) if hasattr(layer, "is_binary") else ():
            position = next(i for i, weight in enumerate(trained.weights) if weight is kernel)
            result.weights[position].assign(_signs(kernel, layer))
    return result


@functools.cache
def _binary_class(cls):
    """A layer class whose kernels are binary in every call, and in whose gradients they are not."""

    class Binary(cls):
        is_binary = True

        @functools.wraps(cls.call)
        def call(self, *args, **kwargs):
            values = {id(variable): variable.value for variable in self.variables}
            for kernel in _kernels(self):
                clipped = keras.ops.clip(kernel, -1, 1)
                values[id(kernel)] = clipped + keras.ops.stop_gradient(_signs(kernel, self) - clipped)
            with keras.StatelessScope([(variable, values[id(variable)]) for variable in self.variables]):
                return super().call(*args, **kwargs)

    Binary.__name__ = cls.__name__
    return Binary


def _kernels(layer):
    return [w for w in layer.trainable_weights if w.name.endswith("kernel") and "depthwise" not in w.name]


def _signs(kernel, layer):
    """alpha sign(W): the signs of a kernel, times the mean of its absolute values for each filter."""
    kernel = keras.ops.convert_to_tensor(kernel)
    filters = len(kernel.shape) - (2 if "Transpose" in type(layer).__name__ else 1)
    axes = [axis for axis in range(len(kernel.shape)) if axis != filters]
    alpha = keras.ops.mean(keras.ops.abs(kernel), axis=axes, keepdims=True)
    return keras.ops.where(kernel >= 0, alpha, -alpha)
