"""The networks of the papers, as plain Keras models that map pixels in [0, 1] to logits."""

from tfcompress.models.lenet import lenet5

__all__ = ["lenet5"]
