"""Gradual magnitude pruning with TF-MOT: wrap, train, strip."""

import numpy as np

from tfcompress.keras2 import tf_keras, tfmot, to_tf_keras
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
        model: a Keras 3 or tf_keras model, trained. It is not changed.
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
        A `tf_keras.Model` without wrappers whose kernels hold the zeros.

    Raises:
        ValueError: a sparsity outside [0, 1), an allocation or a ramp that cannot be.
        UnsupportedLayerError: a layer that tf_keras does not have.
    """
    from tfcompress.training import fit

    if not 0 <= ramp[0] < ramp[1] <= 1:
        raise ValueError(f"ramp must be two increasing fractions in [0, 1]. Received: {ramp}")
    steps = config.epochs * -(-len(x) // config.batch_size)
    begin, end = (int(fraction * steps) for fraction in ramp)
    frequency = max(1, (end - begin) // _MASK_UPDATES)
    wrapped = prune_wrap(model, sparsity, begin_step=begin, end_step=end, frequency=frequency, allocation=allocation)
    fit(
        wrapped,
        x,
        y,
        config,
        validation=validation,
        teacher=teacher,
        directory=directory,
        callbacks=pruning_callbacks(),
    )
    return strip(wrapped)


def prune_wrap(model, sparsity, *, begin_step, end_step, frequency=100, allocation="lamp"):
    """Wraps the prunable layers of a copy of the model in TF-MOT's `PruneLowMagnitude`.

    Train the result with `pruning_callbacks()`, then `strip` it. TF-MOT counts steps in a variable of its own, not by
    the optimizer: a checkpoint of the model's variables holds masks and step, and training resumes from it exactly.

    Args:
        model: a Keras 3 or tf_keras model. It is not changed.
        sparsity: the fraction of all prunable weights that will be zero, in [0, 1).
        begin_step: training step at which the ramp begins. It begins at the sparsity that a layer has by then.
        end_step: step at which it ends, moved down to a whole number of `frequency` steps after `begin_step`: TF-MOT
            updates masks at those steps only and would otherwise stop short of the final sparsity.
        frequency: steps between two updates of the masks.
        allocation: each layer's part, see `allocate`.

    Returns:
        A `tf_keras.Model`.

    Raises:
        ValueError: a sparsity outside [0, 1), or a ramp shorter than one update.
        UnsupportedLayerError: a layer that tf_keras does not have.
    """
    legacy = _copy(to_tf_keras(model))
    updates = (end_step - begin_step) // frequency
    if begin_step < 0 or updates < 1:
        raise ValueError(
            f"the ramp needs at least one update of the masks. Received: begin_step={begin_step}, "
            f"end_step={end_step}, frequency={frequency}"
        )
    steps = {"begin_step": begin_step, "end_step": begin_step + updates * frequency, "frequency": frequency}
    targets = allocate(legacy, sparsity, allocation)
    kernels = prunable_kernels(legacy)

    def wrap(layer, prefix=""):
        if isinstance(layer, tf_keras.Model):
            return tf_keras.models.clone_model(layer, clone_function=lambda x: wrap(x, f"{prefix}{layer.name}/"))
        name = f"{prefix}{layer.name}"
        if not targets.get(name):
            return layer
        # TF-MOT leaves depthwise kernels alone unless the layer itself names them.
        layer.get_prunable_weights = lambda: kernels[name]
        # TF-MOT computes in float32 and fails on numpy's float64 scalars.
        schedule = tfmot.sparsity.keras.PolynomialDecay(
            initial_sparsity=min(_zeros(kernels[name]), float(targets[name])),
            final_sparsity=float(targets[name]),
            **steps,
        )
        return tfmot.sparsity.keras.prune_low_magnitude(layer, schedule)

    return tf_keras.models.clone_model(legacy, clone_function=wrap)


def pruning_callbacks():
    """The Keras 2 callbacks that training a wrapped model needs: [UpdatePruningStep], which masks after every epoch."""
    return [tfmot.sparsity.keras.UpdatePruningStep()]


def strip(model):
    """Removes the pruning wrappers.

    Args:
        model: what `prune_wrap` returned, trained.

    Returns:
        A new `tf_keras.Model` with the layers and names of the source; the masks are applied to its kernels.
    """
    for module in model.submodules:
        if hasattr(module, "pruning_obj"):
            # The last update of the optimizer touched masked weights as well.
            module.pruning_obj.weight_mask_op()
    return _copy(tfmot.sparsity.keras.strip_pruning(model))


def _copy(model):
    clone = tf_keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


def _zeros(kernels):
    return float(1.0 - sum(np.count_nonzero(k) for k in kernels) / sum(np.size(k) for k in kernels))
