"""What criteria judge: a matrix with one row per coupled channel, from weights, BatchNorm scales or gradients."""

import keras
import numpy as np
from keras import layers

from tfcompress.datasets.arrays import as_classes
from tfcompress.graph import as_inputs, input_structure
from tfcompress.outputs import check_logits
from tfcompress.surgery.rebuild import rebuild


def matrices(graph, criterion):
    """The function (group, alive) -> (N, d) matrix that a criterion reads. `alive` is None or (classes,) bool."""
    if criterion.reads == "gamma":
        mean = _mean_gamma(graph)
        return lambda group, alive: _gammas_of(graph, group, mean)
    if criterion.reads == "taylor":
        products = weight_gradient_products(graph, criterion.x, criterion.y, criterion.loss, criterion.batch_size)
        return lambda group, alive: sum(products[name][where].sum(axis=1) for name, where in group.positions.items())
    return graph.filters


def _mean_gamma(graph):
    """(classes,) mean |gamma| over the BatchNorms that each class passes; NaN where there is none."""
    total, count = np.zeros(len(graph.frozen)), np.zeros(len(graph.frozen))
    for _, layer in graph.layers.values():
        # One that is skipped, as no rule knows its class, has no labels.
        if isinstance(layer, layers.BatchNormalization) and layer.scale and id(layer.gamma) in graph.labels:
            classes = graph.class_of[graph.labels[id(layer.gamma)].ids[0]]
            np.add.at(total, classes, np.abs(keras.ops.convert_to_numpy(layer.gamma)))
            np.add.at(count, classes, 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _gammas_of(graph, group, mean):
    gammas = mean[group.classes]
    if np.isnan(gammas).any():
        raise ValueError(
            f"The criterion 'bn_gamma' needs a BatchNormalization with a scale behind every channel: those of "
            f"{group.name!r} pass none. Skip that layer or choose another criterion."
        )
    return gammas[:, None]


def weight_gradient_products(graph, x, y, loss=None, batch_size=32):
    """sum_k w_ik dL/dw_ik of every output channel i of every producer.

    The gradients are those of inference (moving statistics, no dropout, noise or augmentation) and of the loss alone,
    without regularization. Keras has no call for gradients that works on every backend, but its optimizers receive
    them.

    Args:
        graph: a `ChannelGraph`.
        x: inputs, as for `tfcompress.recalibrate`.
        y: targets; for the default loss labels as `tfcompress.training.fit` takes them.
        loss: a Keras loss; by default sparse categorical cross-entropy of logits.
        batch_size: examples per batch.

    Returns:
        {producer: (channels, batches)}.
    """
    model = rebuild(graph, np.ones(len(graph.frozen), bool))
    for layer in model._flatten_layers():
        layer.trainable = True
        layer.activity_regularizer = None
    for variable in model.weights:
        variable.regularizer = None
        variable.constraint = None
    if loss is None:
        check_logits(graph.model, "the model that the criterion 'taylor' judges")
    x = as_inputs(graph.model, x)
    y = as_classes(y) if loss is None else y
    if len(x[0]) != len(y):
        raise ValueError(f"x and y must be equally many examples. Received: {len(x[0])} and {len(y)}")
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    inference = _Inference(model)
    inference.compile(GradientsAsWeights(), loss, jit_compile=False)
    variables = {name: _twin(model, graph, producer) for name, producer in graph.producers.items()}
    weights = model.get_weights()
    products = {name: [] for name in variables}
    for start in range(0, len(y), batch_size):
        batch = [array[start : start + batch_size] for array in x]
        inference.train_on_batch(batch if len(batch) > 1 else batch[0], y[start : start + batch_size])
        for name, producer in graph.producers.items():
            gradient = keras.ops.convert_to_numpy(variables[name])
            product = gradient * keras.ops.convert_to_numpy(producer.variable)
            others = tuple(axis for axis in range(product.ndim) if axis != producer.axis)
            products[name].append(product.sum(axis=others))
        model.set_weights(weights)
    return {name: np.stack(columns, axis=1) for name, columns in products.items()}


class _Inference(keras.Model):
    """A network that works as in inference while it is trained; it takes a list of arrays."""

    def __init__(self, network):
        super().__init__(name="inference")
        self.network = network

    def call(self, inputs):
        structure = input_structure(self.network)
        return self.network(keras.tree.pack_sequence_as(structure, keras.tree.flatten(inputs)), training=False)


class GradientsAsWeights(keras.optimizers.Optimizer):
    """Puts each variable's gradient in its place."""

    def __init__(self):
        super().__init__(learning_rate=1.0)

    def apply(self, grads, trainable_variables=None):
        """Of a variable that the loss does not depend on, zeros; of an Embedding, the dense gradient."""
        variables = self._trainable_variables if trainable_variables is None else trainable_variables
        zeros = [keras.ops.zeros_like(variable) for variable in variables]
        dense = [x if grad is None else keras.ops.add(x, grad) for x, grad in zip(zeros, grads, strict=True)]
        return super().apply(dense, trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        self.assign(variable, gradient)


def _twin(model, graph, producer):
    """The variable of a clone that corresponds to a producer's."""
    original, clone = graph.model, model
    for part in producer.name.split("/"):
        original, clone = original.get_layer(part), clone.get_layer(part)
    index = next(i for i, variable in enumerate(original.weights) if variable is producer.variable)
    return clone.weights[index]
