"""Soft filter pruning: filters are zeroed after every epoch, and may come back until the last one."""

from pathlib import Path

import keras
import numpy as np

from tfcompress.files import write_text
from tfcompress.surgery import PruningPlan, plan_pruning


class SoftPruning(keras.callbacks.Callback):
    """Zeroes, after every epoch, the filters that a pruning would then remove; training goes on with all of them.

    He et al. 2018, "Soft filter pruning for accelerating deep convolutional neural networks", algorithm 1. Beyond the
    paper, the offset and the mean of a BatchNorm right behind a zeroed filter become zero too, so that the network in
    which the last epoch leaves the zeros computes what `apply_plan(model, callback.plan)` computes without them.

    Args:
        model: the Keras model that `fit` trains, in one piece (no nested models).
        criterion: as for `prune_channels`. It judges the filters as they are after the epoch.
        path: JSON file for the plan of the last epoch; a resumed training finds it there.
        budget: the other arguments of `prune_channels`.
    """

    def __init__(self, model, criterion, path, **budget):
        super().__init__()
        self._network, self._criterion, self._path, self._budget = model, criterion, Path(path), budget

    @property
    def plan(self):
        """The `PruningPlan` of the last epoch."""
        return PruningPlan.from_json(self._path.read_text())

    def on_epoch_end(self, epoch, logs=None):
        """Chooses by the weights of now, and zeroes them."""
        self._network.set_weights(self.model.get_weights())
        plan = plan_pruning(self._network, self._criterion, **self._budget)
        removed = {name: np.setdiff1d(np.arange(plan.widths[name]), kept) for name, kept in plan.kept.items()}
        for layer in self.model.layers:
            if layer.name in removed:
                _zero(layer.kernel, removed[layer.name], -2 if "Transpose" in type(layer).__name__ else -1)
                if layer.use_bias:
                    _zero(layer.bias, removed[layer.name])
            elif isinstance(layer, keras.layers.BatchNormalization):
                gone = removed.get(layer.input._keras_history.operation.name, ())
                _zero(layer.moving_mean, gone)
                if layer.center:
                    _zero(layer.beta, gone)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._path, plan.to_json())


def _zero(variable, channels, axis=-1):
    values = np.array(variable)
    np.moveaxis(values, axis, 0)[channels] = 0
    variable.assign(values)
