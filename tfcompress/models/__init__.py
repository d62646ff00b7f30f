"""The networks of the papers, as plain Keras models that map pixels in [0, 1] to logits."""

from tfcompress.models.densenet import densenet
from tfcompress.models.lenet import lenet5
from tfcompress.models.load import ModelError, load_model
from tfcompress.models.mobilenet import mobilenet
from tfcompress.models.resnet import deepen, resnet
from tfcompress.models.vgg import vgg16

__all__ = ["ModelError", "deepen", "densenet", "lenet5", "load_model", "mobilenet", "resnet", "vgg16"]
