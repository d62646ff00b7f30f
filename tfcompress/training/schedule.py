"""Learning rates: one table of numbers per training, read by step, the same for every framework."""

import math

import numpy as np


def learning_rates(config, steps_per_epoch):
    """Computes the learning rate of every step.

    Args:
        config: a `TrainingConfig`.
        steps_per_epoch: optimizer steps in one epoch.

    Returns:
        float32 array of shape `(epochs * steps_per_epoch,)`.
    """
    steps = config.epochs * steps_per_epoch
    warmup = config.warmup_epochs * steps_per_epoch
    if config.schedule == "one_cycle" and not warmup:
        warmup = 0.3 * steps
    step = np.arange(steps)
    progress = np.clip((step - warmup) / max(steps - warmup, 1), 0, 1)
    rising = np.clip((step + 1) / max(warmup, 1), 0, 1) if warmup else np.ones(steps)
    factors = {
        "constant": lambda: rising,
        "step": lambda: rising * 0.2 ** np.sum([step >= at * steps for at in (0.3, 0.6, 0.8)], axis=0),
        "cosine": lambda: rising * _half_cosine(progress),
        "one_cycle": lambda: np.where(
            step < warmup, 1 - 24 / 25 * _half_cosine(rising), 1e-4 + (1 - 1e-4) * _half_cosine(progress)
        ),
    }[config.schedule]()
    return (config.learning_rate * factors).astype("float32")


def table_schedule(keras_module, table):
    """Wraps a table of learning rates as a `LearningRateSchedule` of Keras 3 or tf_keras.

    An optimizer's own schedule is used, not a callback, since a callback cannot reach the compiled state of JAX.
    """

    class TableSchedule(keras_module.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            import keras

            index = keras.ops.minimum(keras.ops.cast(step, "int32"), len(table) - 1)
            return keras.ops.take(keras.ops.convert_to_tensor(table), index)

        def get_config(self):
            return {"table": [float(rate) for rate in table]}

    return TableSchedule()


def _half_cosine(progress):
    return 0.5 * (1 + np.cos(math.pi * progress))
