"""Training of one model: epochs, checkpoints, history."""

import contextlib
import csv
import dataclasses
import json
import sys
import time
import zlib
from pathlib import Path

import numpy as np

from tfcompress.datasets.arrays import as_classes, as_float
from tfcompress.errors import listed
from tfcompress.files import replacing
from tfcompress.graph import check_takes_floats, frozen_layers, is_channels_first, network_of
from tfcompress.outputs import check_logits
from tfcompress.training.augment import augment, is_augmenting, mix
from tfcompress.training.checkpoint import CheckpointError, digest, load_checkpoint, save_checkpoint
from tfcompress.training.config import AUGMENTATIONS, TrainingConfig
from tfcompress.training.fast import fused_sgd, training_clone
from tfcompress.training.predict import accuracy, check_paired
from tfcompress.training.schedule import learning_rates, table_schedule
from tfcompress.training.teacher import CachedTeacher, logits_of

_STATISTICS_IMAGES = 2560  # that the moving averages of BatchNorm reach back


def fit(
    model,
    images,
    labels,
    config: TrainingConfig,
    *,
    validation=None,
    teacher=None,
    directory=None,
    callbacks=(),
    identity=None,
):
    """Trains a classifier in place, with checkpoints after every epoch.

    BatchNorm's moving averages reach back 2,560 images, and one epoch, at most: at the usual 0.99 they lag behind
    weights that change quickly, and the held-out accuracy would say more of that than of the network.

    The same call with the same `directory` resumes an interrupted training and ends with the weights, bit for bit, of
    an uninterrupted one (on one machine, with the same versions and number of threads); a finished one is loaded.

    Layers that are frozen (`trainable=False`) stay as they are, and are counted on stderr. After an error or an
    interruption the model has the weights it came with.

    Args:
        model: a built Keras 3 or tf_keras model with one image input that returns logits. A Keras 3 model stays
            compiled as it was, if Keras can clone it; else, and in tf_keras, it comes back compiled.
        images: (N, H, W, C), uint8 pixels (trained on as pixels / 255), or floats as the model takes them.
        labels: (N,) or (N, 1) integers in [0, classes), or one-hot (N, classes).
        config: a `TrainingConfig`.
        validation: (images, labels) to measure after each epoch, or None.
        teacher: a model whose softened logits on the same augmented images are learned too (Hinton et al. 2015,
            "Distilling the knowledge in a neural network"), a `CachedTeacher`, or None.
        directory: where `checkpoint.npz` and `history.csv` go; None keeps nothing.
        callbacks: Keras callbacks of the model's own framework. Their `self.model` is what is trained, a clone maybe.
            Each epoch is a `fit` of its own without validation: what a callback remembers must survive
            `on_train_begin`, and none can end the training.
        identity: what else makes this training another one, a dict for JSON: the settings of the callbacks, say.
            "initial_weights" stands for the model's own weights, if these cannot be had again bit by bit.

    Returns:
        The history: a list of dicts with epoch, learning_rate, loss, accuracy (of images mixed by `cutmix`, that of the
        larger part), val_accuracy (None without validation) and seconds.

    Raises:
        ValueError: images, labels and model do not fit together, the model takes integers, model or teacher end in a
            softmax, what is to be augmented is not (N, H, W, C), or a callback asks for the end of the training.
        FloatingPointError: the loss became infinite or NaN; that epoch leaves no checkpoint.
        CheckpointError: the directory holds a damaged checkpoint, or one of another training.
    """
    labels = as_classes(labels)
    classes = check_data(model, images, labels)
    if teacher is not None and teacher.output_shape[-1] != classes:
        raise ValueError(
            f"the teacher must have the model's outputs, {classes} of them. Received: {teacher.output_shape[-1]}"
        )
    check_logits(model)
    if teacher is not None:
        check_logits(teacher.model if isinstance(teacher, CachedTeacher) else teacher, "the teacher")
    if validation:
        check_data(model, validation[0], as_classes(validation[1]))
    _check_augmentation(model, images, config)
    _report_frozen(model)
    identity = {**_identity(model, images, labels, config, teacher), **(identity or {})}
    # As it will be read back; hyperparameters may be NumPy's numbers.
    identity = json.loads(json.dumps(identity, default=lambda value: value.item()))
    path = Path(directory) / "checkpoint.npz" if directory else None
    steps = -(-len(images) // config.batch_size)
    with (
        training_clone(model, config.precision) as trained,
        logits_of(teacher, config.precision) as ask,
        _prompt_statistics(trained, min(steps, max(1, _STATISTICS_IMAGES // config.batch_size))),
    ):
        _seed_dropout(trained, config.seed)
        rates = learning_rates(config, steps)
        _compile(trained, config, rates, classes, ask is not None)
        history = _restore(trained, path, identity) if path else []
        if history:  # a process that was killed may have written the checkpoint only
            _write_history(path.with_name("history.csv"), history)
        for epoch in range(len(history), config.epochs):
            row = _train_epoch(trained, images, labels, classes, config, epoch, ask, callbacks)
            if getattr(trained, "stop_training", False):
                raise ValueError(
                    f"A callback set stop_training in epoch {epoch + 1}: fit trains all epochs, as the learning rate "
                    "falls until the last one. Choose fewer epochs instead"
                )
            row["learning_rate"] = float(rates[(epoch + 1) * steps - 1])
            row["val_accuracy"] = accuracy(trained, *validation) if validation else None
            history.append(row)
            if path:
                state = [np.asarray(variable) for variable in _state(trained)]
                save_checkpoint(path, state, {**identity, "history": history})
                _write_history(path.with_name("history.csv"), history)
            _report(history, config.epochs)
    return history


@contextlib.contextmanager
def _prompt_statistics(model, steps):
    """Lowers the momenta of BatchNorms that average over more than so many steps; afterwards they are as before."""
    norms = {layer: layer.momentum for layer in model._flatten_layers() if hasattr(layer, "moving_variance")}
    try:
        for layer, momentum in norms.items():
            layer.momentum = min(momentum, 1 - 1 / steps)
        yield
    finally:
        for layer, momentum in norms.items():
            layer.momentum = momentum


def _train_epoch(model, images, labels, classes, config, epoch, ask, callbacks):
    start = time.perf_counter()
    # A generator of its own for each epoch makes the data of epoch k independent of how often the run was resumed.
    rng = np.random.default_rng([config.seed, epoch])
    order = rng.permutation(len(images))
    y = np.eye(classes, dtype="float32")[labels[order]]
    x, y = mix(augment(images[order], config, rng), y, config, rng)
    x = as_float(x)
    y = y * (1 - config.label_smoothing) + np.float32(config.label_smoothing / classes)
    if ask:
        y = np.concatenate([y, ask(x)], axis=1)
    history = model.fit(
        **_batches(x, y, config.batch_size),
        shuffle=False,
        initial_epoch=epoch,
        epochs=epoch + 1,
        callbacks=list(callbacks),
        verbose=1 if sys.stdout.isatty() else 0,
    ).history
    loss = float(history["loss"][0])
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"The loss is {loss} in epoch {epoch + 1}: training diverged. Lower learning_rate (now "
            f"{config.learning_rate}) or raise warmup_epochs (now {config.warmup_epochs})"
        )
    return {
        "epoch": epoch + 1,
        "loss": loss,
        "accuracy": float(history["accuracy"][0]),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _batches(x, y, batch_size):
    """The data of an epoch as arguments of `fit`.

    What Keras makes of arrays is tuned by a thread of tf.data that sleeps for 10 ms, 20 ms, ... up to a minute; the end
    of every epoch waits for it to wake up, up to half of the time. A data set of our own has no such thread.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return {"x": x, "y": y, "batch_size": batch_size}
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return {"x": tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size).prefetch(2).with_options(options)}


def _compile(model, config, table, classes, distill):
    keras_module = _framework(model)
    options = {"learning_rate": table_schedule(keras_module, table), "weight_decay": config.weight_decay or None}
    if config.optimizer == "sgd":
        fused = keras_module.__name__ == "keras" and keras_module.backend.backend() == "tensorflow"
        sgd = fused_sgd() if fused else keras_module.optimizers.SGD
        optimizer = sgd(momentum=0.9, nesterov=True, **options)
    else:
        optimizer = keras_module.optimizers.Adam(**options)
    if config.weight_decay:
        optimizer.exclude_from_weight_decay([v for v in model.trainable_variables if len(v.shape) < 2])
    # XLA on CPU was measured 10 times slower than TensorFlow's own kernels; JAX has nothing else.
    model.compile(
        optimizer=optimizer,
        loss=_loss(classes, config if distill else None),
        metrics=[_accuracy_metric(classes)],
        jit_compile=_is_jax(model),
    )
    # The model's own: under a policy of mixed_float16, Keras has put one that scales the loss around it.
    model.optimizer.build(model.trainable_variables)


def _loss(classes, config):
    """Cross-entropy of labels, with the distillation term of Hinton et al. 2015 if `config` is given.

    Written in keras.ops, which tf_keras graphs take as well: both frameworks train on the same formula.
    """
    from keras import ops

    def loss(targets, logits):
        hard = ops.categorical_crossentropy(targets[:, :classes], logits, from_logits=True)
        if config is None:
            return hard
        soft_targets = ops.softmax(targets[:, classes:] / config.temperature)
        soft = ops.categorical_crossentropy(soft_targets, logits / config.temperature, from_logits=True)
        weight = config.distillation_weight
        return (1 - weight) * hard + weight * config.temperature**2 * soft

    return loss


def _accuracy_metric(classes):
    from keras import ops

    def accuracy(targets, logits):
        return ops.cast(ops.equal(ops.argmax(targets[:, :classes], -1), ops.argmax(logits, -1)), "float32")

    return accuracy


def _restore(model, path, identity):
    """Loads the state at `path` into the compiled model; returns its history ([] when there is none)."""
    stored = load_checkpoint(path)
    if stored is None:
        return []
    arrays, meta = stored
    history = meta.pop("history")
    # A hyperparameter that there was not yet had no effect, as by its default now.
    meta = {**dataclasses.asdict(TrainingConfig(epochs=1)), "network": identity["network"], **meta}
    meta.pop("sha256", None)
    # What only one of the two has is another training, unless it says that nothing is done.
    different = [key for key in {**identity, **meta} if (meta.get(key) or None) != (identity.get(key) or None)]
    if different:
        found = "; ".join(f"{key} {meta.get(key)!r}, now {identity.get(key)!r}" for key in different)
        raise CheckpointError(
            f"{path} was written by another training ({found}); use another directory, or delete it to start again"
        )
    for variable, array in zip(_state(model), arrays, strict=True):
        variable.assign(array)
    return history


def _identity(model, images, labels, config, teacher):
    """What makes two trainings the same: hyperparameters, data, the weights they start from, and the teacher."""
    return {
        **dataclasses.asdict(config),
        "images": f"{images.shape} {images.dtype} {zlib.crc32(np.ascontiguousarray(images)):08x}",
        "labels": f"{zlib.crc32(np.ascontiguousarray(labels)):08x}",
        "initial_weights": digest(model.get_weights())[:16],
        "network": network_of(model),
        "teacher": digest(teacher.get_weights())[:16] if teacher is not None else None,
    }


def _state(model):
    """Every variable that training changes: weights, dropout seeds, TF-MOT's ranges, the optimizer."""
    optimizer = model.optimizer
    variables = optimizer.variables
    return [*model.variables, *(variables() if callable(variables) else variables)]


def _seed_dropout(model, seed):
    generators = [v for v in model.variables if getattr(v, "path", v.name).endswith("seed_generator_state")]
    for i, variable in enumerate(generators):
        variable.assign(np.array([seed, i], dtype="uint32"))


def check_data(model, images, labels):
    """The number of classes of a classifier that can be trained on images (N, H, W, C) with labels (N,).

    Raises:
        ValueError: images, labels and model do not fit together, or the model takes integers.
    """
    check_paired(images, labels)
    inputs = getattr(model, "inputs", None)
    if inputs and len(inputs) != 1:
        raise ValueError(f"a classifier with one input is expected. Received: {len(inputs)} inputs")
    expected = tuple(model.input_shape[1:])
    if images.ndim != len(expected) + 1 or any(b not in (None, a) for a, b in zip(images.shape[1:], expected)):
        raise ValueError(f"the model takes images of shape {model.input_shape[1:]}. Received: {images.shape[1:]}")
    if images.dtype != np.uint8 and not np.isfinite(images).all():
        raise ValueError("images must be finite. Received: NaN or infinite values")
    check_takes_floats(model)
    outputs = getattr(model, "outputs", None)
    if outputs and (len(outputs) != 1 or len(outputs[0].shape) != 2):
        raise ValueError(
            "a classifier with one output, (batch, classes), is expected. Received: outputs of shape "
            f"{', '.join(str(tuple(output.shape)) for output in outputs)}"
        )
    classes = outputs[0].shape[-1] if outputs else model.output_shape[-1]
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels must be in [0, {classes}), as the model has {classes} outputs. "
            f"Received: {labels.min()} to {labels.max()}"
        )
    return classes


def _check_augmentation(model, images, config):
    """Refuses to augment what are no images (H, W, C): rows and columns would be taken for something else."""
    if not is_augmenting(config):
        return
    first = [layer.name for layer in model._flatten_layers() if is_channels_first(layer)]
    if images.ndim != 4 or first:
        raise ValueError(
            f"{', '.join(AUGMENTATIONS)} take images (height, width, channels). Received: images "
            f"{images.shape[1:]}" + (f" of a channels-first model ({listed(first)})" if first else "")
        )


def _framework(model):
    import keras

    if isinstance(model, keras.Model):
        return keras
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"tf_keras models train with KERAS_BACKEND=tensorflow only. Received: {keras.backend.backend()}"
        )
    import tf_keras

    return tf_keras


def _is_jax(model):
    import keras

    return _framework(model) is keras and keras.backend.backend() == "jax"


def _write_history(path, history):
    with replacing(path) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "learning_rate", "loss", "accuracy", "val_accuracy", "seconds"])
        writer.writeheader()
        writer.writerows(history)


def history_seconds(path):
    """The seconds of all epochs in a `history.csv`."""
    with open(path, newline="") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file))


def _report_frozen(model):
    if frozen := frozen_layers(model):
        print(f"{model.name}: {len(frozen)} layers are frozen and stay as they are: {listed(frozen)}", file=sys.stderr)


def _report(history, epochs):
    row = history[-1]
    left = (epochs - row["epoch"]) * np.median([r["seconds"] for r in history])
    held_out = "" if row["val_accuracy"] is None else f"  held-out {row['val_accuracy']:.4f}"
    print(
        f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}{held_out}  "
        f"{row['seconds']:.1f} s, {left / 60:.1f} min left",
        flush=True,
    )
