"""Gradual magnitude pruning: the smallest weights become zero while the network trains."""

import keras
import numpy as np

from tfcompress.graph import copy_model, model_inputs
from tfcompress.sparsity.allocation import allocate, prunable_kernels

_MASK_UPDATES = 50


def sparsify(
    model,
    sparsity,
    x,
    y,
    config,
    *,
    allocation="lamp",
    ramp=(0.0, 0.6),
    teacher=None,
    validation=None,
    directory=None,
):
    """Makes a network sparse by gradual magnitude pruning while it trains.

    The ramp is that of Zhu & Gupta 2017 ("To prune, or not to prune", eq. 1):
    s_t = s_f + (s_i - s_f)(1 - (t - t_0) / (n dt))^3 in 50 updates of the masks;
    the rest of the training recovers accuracy with fixed masks.

    Args:
        model: a Keras 3 model, trained. It is not changed. Zeros that are there already stay.
        sparsity: the fraction of all prunable weights that will be zero, in [0, 1).
        x: training images, as `tfcompress.training.fit` takes them.
        y: (N,) integer labels.
        config: a `TrainingConfig`.
        allocation: each layer's part, see `allocate`.
        ramp: (start, end) of the ramp as fractions of the training.
        teacher: a model to be distilled from, a `CachedTeacher`, or None.
        validation: (images, labels) to measure after each epoch, or None.
        directory: where the checkpoints go, or None. The same call resumes there.

    Returns:
        A Keras model of the same layers whose kernels hold the zeros.

    Raises:
        ValueError: a sparsity outside [0, 1), an allocation or a ramp that cannot be, a model that is not built,
            subclassed or ends in a softmax.
        FloatingPointError, CheckpointError: as `fit` raises them.
    """
    from tfcompress.training import fit

    model_inputs(model)
    if not 0 <= ramp[0] < ramp[1] <= 1:
        raise ValueError(f"ramp must be two increasing fractions in [0, 1]. Received: {ramp}")
    steps = config.epochs * -(-len(x) // config.batch_size)
    sparse = copy_model(model)
    pruning = MagnitudePruning(sparse, allocate(model, sparsity, allocation), *(int(part * steps) for part in ramp))
    identity = {"sparsity": sparsity, "allocation": allocation, "ramp": list(ramp)}
    options = {"validation": validation, "teacher": teacher, "directory": directory}
    fit(sparse, x, y, config, callbacks=[pruning], identity=identity, **options)
    return sparse


class MagnitudePruning(keras.callbacks.Callback):
    """Zeroes the smallest weights of each layer while `fit` trains, ever more of them.

    A zero stays one: weights and the number of steps are all that a resumed training has to know.

    Args:
        model: the Keras model, with the weights it has before the training.
        sparsity: {layer name: sparsity at the end}, as `allocate` returns it.
        begin: training step at which the ramp begins, from the sparsity that each kernel has by now.
        end: step at which it ends.
        updates: how often the masks change between the two, if there are as many steps.
    """

    def __init__(self, model, sparsity, begin, end, updates=_MASK_UPDATES):
        super().__init__()
        self._begin = begin
        self._frequency = max(1, (end - begin) // updates)
        # A last update that is not a whole number of steps behind the first would never come.
        self._length = max(1, (end - begin) // self._frequency) * self._frequency
        # By position: the model that is trained may be a clone whose layers are of other classes.
        position = {id(variable): i for i, variable in enumerate(model.weights)}
        self._ramps = {
            position[id(kernel)]: (float(np.mean(np.asarray(kernel) == 0)), sparsity[name])
            for name, kernels in prunable_kernels(model).items()
            for kernel in kernels
        }

    def sparsity_at(self, step, initial, final):
        """Zhu & Gupta 2017, eq. 1."""
        left = 1 - min(max(step - self._begin, 0) / self._length, 1)
        return final + (initial - final) * left**3

    def on_train_begin(self, logs=None):
        """Reads the masks and the step off a model that may have been trained before."""
        self._step = int(np.asarray(self.model.optimizer.iterations))
        self._masks = {i: np.asarray(self.model.weights[i]) != 0 for i in self._ramps}

    def on_train_batch_end(self, batch, logs=None):
        """Updates the masks where the ramp has a step, and applies them: the optimizer has moved the zeros."""
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        self._step += 1
        since = self._step - self._begin
        update = 0 <= since <= self._length and since % self._frequency == 0
        for i, ramp in self._ramps.items():
            kernel = self.model.weights[i]
            if update:
                values = np.abs(kernel) * self._masks[i]
                zeros = min(round(self.sparsity_at(self._step, *ramp) * values.size), values.size - 1)
                self._masks[i].flat[np.argpartition(values, zeros - 1, axis=None)[:zeros]] = False
            if not self._masks[i].all():
                kernel.assign(kernel * self._masks[i])
