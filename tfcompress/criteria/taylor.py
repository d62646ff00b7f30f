"""Channels whose removal changes the loss least, to first order, go first (Molchanov et al. 2019)."""

import numpy as np

from tfcompress.criteria.base import Criterion


class Taylor(Criterion):
    """s_i = mean over batches of (sum_k g_ik w_ik)^2, the group form of the first-order importance (equation 8).

    Args:
        x: inputs of the model, an array or a list or dict of arrays; uint8 pixels are divided by 255
            where it takes floats.
        y: their targets, for `loss`; for the default one integer or one-hot labels.
        loss: a Keras loss; by default sparse categorical cross-entropy of logits.
        batch_size: examples per batch.

    Raises:
        ValueError: without data.
    """

    name = "taylor"
    reads = "taylor"
    comparable = True

    def __init__(self, x=None, y=None, loss=None, batch_size=32):
        if x is None or y is None:
            raise ValueError("The criterion 'taylor' needs data: pass criterion=tfcompress.criteria.Taylor(x, y).")
        self.x, self.y, self.loss, self.batch_size = x, y, loss, batch_size

    def scores(self, filters):
        return np.mean(np.square(filters), axis=1)
