"""Teachers of distillation, and the logits that they give."""

import contextlib
import dataclasses
from pathlib import Path

from tfcompress.training.checkpoint import digest, load_checkpoint, save_checkpoint
from tfcompress.training.fast import training_clone
from tfcompress.training.predict import predict


@dataclasses.dataclass(frozen=True)
class CachedTeacher:
    """A teacher of several students, whose logits are kept in files.

    Trainings with the same images, augmentation, seed and precision show the same images in every epoch: the second
    student need not wait for them. A file holds the logits of one epoch, 4 bytes each.

    Args:
        model: a Keras 3 or tf_keras model.
        directory: folder of the files; teachers may share it.
    """

    model: object
    directory: Path

    def get_weights(self):
        return self.model.get_weights()

    @property
    def output_shape(self):
        """The model's."""
        return self.model.output_shape


@contextlib.contextmanager
def logits_of(teacher, precision):
    """Gives a function from images (N, H, W, C) to the logits (N, classes) of a teacher, or None if there is none.

    Args:
        teacher: a model, a `CachedTeacher`, or None.
        precision: arithmetic of a Keras 3 teacher; its forward passes are a large part of a distillation.
    """
    import keras

    if teacher is None:
        yield None
        return
    model = teacher.model if isinstance(teacher, CachedTeacher) else teacher
    keras3 = isinstance(model, keras.Model)
    with training_clone(model, precision) if keras3 else contextlib.nullcontext(model) as fast:
        if model is teacher:
            yield lambda images: predict(fast, images)
            return
        name = f"{digest(model.get_weights())[:16]}-{precision if keras3 else 'float32'}"

        def ask(images):
            path = Path(teacher.directory) / f"{name}-{digest([images])[:16]}.npz"
            stored = load_checkpoint(path)
            if stored:
                return stored[0][0]
            logits = predict(fast, images)
            save_checkpoint(path, [logits], {})
            return logits

        yield ask
