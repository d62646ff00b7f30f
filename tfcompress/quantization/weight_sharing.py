"""Weight sharing: the weights of each layer take a few values, and training moves these (Deep Compression)."""

import keras
import numpy as np

from tfcompress.errors import listed
from tfcompress.graph import copy_model, layer_names
from tfcompress.sparsity import prunable_kernels
from tfcompress.surgery.channel_graph import as_skip, check_skip, is_skipped

_MOST_CLUSTERS = 256


def share_weights(
    model,
    clusters,
    x,
    y,
    config,
    *,
    skip=(),
    teacher=None,
    validation=None,
    directory=None,
):
    """Lets the weights of each layer share a few values, and trains these.

    Han et al. 2016 ("Deep Compression", section 3): k-means finds the values of a layer (eq. 2, from centroids
    spread evenly over the range of its weights), then each moves by the mean of what its weights would move by: the sum
    of eq. 3 over their number, so that learning rate and weight decay mean what they do in any other training. The
    result is a model as large as before whose files compress well: k values are worth log2(k) bits a weight.

    Args:
        model: a Keras 3 model, trained. It is not changed.
        clusters: how many values a layer's kernels take, 2 to 256. Weights that are zero stay zero and do not count, so
            that what `sparsify` made is kept. Depthwise kernels and biases are not shared: they are few.
        x: training images, as `tfcompress.training.fit` takes them.
        y: (N,) integer labels.
        config: a `TrainingConfig`.
        skip: names of layers, or of nested models, whose weights are not shared.
        teacher: a model to be distilled from, a `CachedTeacher`, or None.
        validation: (images, labels) to measure after each epoch, or None.
        directory: where the checkpoints go, or None. The same call resumes there.

    Returns:
        A Keras model of the same layers. To keep its values equal in a quantization-aware training, give that
        `preserve_sharing=True`.

    Raises:
        ValueError: a number of clusters that cannot be, a name in `skip` that is no layer's, a model that is not built,
            subclassed or ends in a softmax, or one without kernels to share.
        FloatingPointError, CheckpointError: as `fit` raises them.
    """
    from tfcompress.training import fit
    from tfcompress.training.checkpoint import digest

    check_clusters(clusters)
    shareable(model, skip)
    shared = copy_model(model)
    kernels = shareable(shared, skip)
    for kernel in kernels:
        kernel.assign(_clustered(np.array(kernel), int(clusters)))
    # Not the weights of `shared`: another processor finds centroids that differ in the last bits.
    initial = digest(model.get_weights())[:16]
    identity = {"clusters": int(clusters), "skip": sorted(set(skip)), "initial_weights": initial}
    options = {"validation": validation, "teacher": teacher, "directory": directory}
    fit(shared, x, y, config, callbacks=[weight_tying(shared, kernels)], identity=identity, **options)
    return shared


def shareable(model, skip=()):
    """The kernels whose weights are shared, or a ValueError that says why there are none."""
    skip, names = as_skip(skip), layer_names(model)
    check_skip(skip, names)
    found = prunable_kernels(model, depthwise=False)
    kernels = [kernel for name, kernels in found.items() if not is_skipped(name, skip) for kernel in kernels]
    if not kernels:
        raise ValueError(
            f"{model.name!r} has no weights to share: trainable convolutions or dense layers are expected. Received: "
            f"{listed(names)}, skip={sorted(skip)}"
        )
    return kernels


def check_clusters(clusters):
    integer = isinstance(clusters, int | np.integer) and not isinstance(clusters, bool)
    if not integer or not 2 <= clusters <= _MOST_CLUSTERS:
        raise ValueError(f"clusters must be an integer from 2 to {_MOST_CLUSTERS}. Received: {clusters!r}")


def weight_tying(model, kernels=None):
    """A callback for `fit` that keeps weights equal which are equal when an epoch begins, and all zeros zero.

    Args:
        model: the Keras 3 or tf_keras model that is trained.
        kernels: the variables whose weights are tied; by default those with at most half as many values as weights.
    """
    if isinstance(model, keras.Model):
        base = keras.callbacks.Callback
    else:
        from tfcompress.keras2 import tf_keras

        base = tf_keras.callbacks.Callback
    return type("WeightTying", (_WeightTying, base), {})(model, kernels)


class _WeightTying:
    def __init__(self, model, kernels):
        super().__init__()
        # By position: `fit` may train a clone whose layers are of other classes.
        position = {id(variable): i for i, variable in enumerate(model.weights)}
        self._positions = [position[id(kernel)] for kernels in prunable_kernels(model).values() for kernel in kernels]
        self._tied = None if kernels is None else {position[id(kernel)] for kernel in kernels}

    def on_train_begin(self, logs=None):
        """Reads codes and zeros off the weights: they are all that a resumed training has to know."""
        self._codes, self._masks = {}, {}
        for i in self._positions:
            kernel = np.asarray(self.model.weights[i])
            values, codes, counts = np.unique(kernel, return_inverse=True, return_counts=True)
            if i in self._tied if self._tied is not None else 2 * len(values) <= kernel.size:
                self._codes[i] = codes.ravel(), counts, values != 0
            elif 0 in values:
                self._masks[i] = kernel != 0

    def on_train_batch_end(self, batch, logs=None):
        """Moves each value by the mean of what the optimizer has moved its weights by."""
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        for i, (codes, counts, free) in self._codes.items():
            kernel = self.model.weights[i]
            means = np.bincount(codes, np.ravel(kernel)) / counts
            kernel.assign((means * free)[codes].reshape(kernel.shape))
        for i, mask in self._masks.items():
            self.model.weights[i].assign(self.model.weights[i] * mask)


def _clustered(kernel, clusters):
    """The kernel with each weight that is not zero replaced by its centroid."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    weights = kernel[kernel != 0].astype("float64")
    if len(np.unique(weights)) > clusters:
        centroids = np.linspace(weights.min(), weights.max(), clusters)
        # On several threads the sums, and so the checkpoint that a training is resumed from, are not reproducible.
        with threadpool_limits(1):
            found = KMeans(clusters, init=centroids[:, None], n_init=1, tol=0).fit(weights[:, None])
        kernel[kernel != 0] = found.cluster_centers_[found.labels_, 0]
    return kernel
