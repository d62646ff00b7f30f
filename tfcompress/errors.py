"""Errors that more than one part of the package raises."""


class UnsupportedLayerError(ValueError):
    """A layer that an operation cannot handle.

    Args:
        layer: the Keras layer or operation.
        reason: what it is that cannot be done, and what to do instead.
    """

    def __init__(self, layer, reason):
        self.layer_name = layer.name
        self.layer_class = type(layer).__name__
        super().__init__(f"Layer {self.layer_name!r} ({self.layer_class}): {reason}")


def listed(names, most=10):
    """The first of some names, for a message."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")
