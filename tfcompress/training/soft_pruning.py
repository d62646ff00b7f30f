"""Soft filter pruning: filters are zeroed after every epoch, and may come back until the last one."""

from pathlib import Path

import keras
import numpy as np

from tfcompress.files import write_text
from tfcompress.surgery import ChannelGraph, PruningPlan, plan_pruning
from tfcompress.surgery.plan import classes_kept

_OFFSETS = ("bias", "beta", "moving_mean")


class SoftPruning(keras.callbacks.Callback):
    """Zeroes, after every epoch, the filters that a pruning would then remove; training goes on with all of them.

    He et al. 2018, "Soft filter pruning for accelerating deep convolutional neural networks", algorithm 1. Beyond the
    paper, the offsets and means of the BatchNorms (and biases of depthwise convolutions) that its channel passes become
    zero too, so that the network in which the last epoch leaves the zeros computes what
    `apply_plan(model, callback.plan)` computes without them (behind an activation that does not map 0 to 0, only where
    no BatchNorm follows: a zero in its scale would keep the filter from coming back).

    Args:
        model: the Keras model that `fit` trains.
        criterion: as for `prune_channels`. It judges the filters as they are after the epoch, those that were zeroed
            before it among them. Where these are kept in the place of trained ones, the network forgets: as
            distribution fitting keeps small filters, too, and as filters in front of a BatchNormalization, which
            divides by their tiny variance, are back at full size after a few steps, so that half of the filters may
            be too many.
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
        graph = ChannelGraph(self._network, plan.skip)
        alive = classes_kept(graph, plan)
        filters = {id(producer.variable): producer.axis for producer in graph.producers.values()}
        # By position: `fit` may train a clone whose layers are of other classes.
        for variable, trained in zip(self._network.weights, self.model.weights, strict=True):
            label = graph.labels.get(id(variable))
            if label is None:
                continue
            axis = 0 if variable.name in _OFFSETS else filters.get(id(variable))
            if axis is not None and axis in label.ids:
                _zero(trained, ~alive[graph.class_of[label.ids[axis]]], axis)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._path, plan.to_json())


def _zero(variable, removed, axis):
    """Zeroes the slices of a weight along an axis, by a bool for each."""
    if removed.any():
        values = np.array(variable)
        np.moveaxis(values, axis, 0)[removed] = 0
        variable.assign(values)
