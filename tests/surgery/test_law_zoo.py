"""The law of surgery on the project's networks, with every budget."""

import numpy as np
import pytest
from law import assert_law, lifelike

from tfcompress import profile
from tfcompress.models import densenet, lenet5, mobilenet, resnet, vgg16

ZOO = {
    "lenet5": lambda: lenet5(),
    "resnet20-A": lambda: resnet(20),
    "resnet14-B": lambda: resnet(14, shortcut="B"),
    "densenet13": lambda: densenet(depth=13),
    "densenet-bc16": lambda: densenet(depth=16, bottleneck=True, reduction=0.5),
    "mobilenet": lambda: mobilenet(alpha=0.25),
    "vgg16": lambda: vgg16(),
}


@pytest.mark.parametrize("name", ZOO)
def test_pruned_equals_silenced(name):
    model = ZOO[name]()
    x = np.random.default_rng(1).normal(size=(8, *model.input_shape[1:]))
    lifelike(model, x)
    pruned, plan = assert_law(model, [x[:4]], ratio=0.4)
    counted = profile(pruned)
    assert (counted.params, counted.macs) == (plan.after.params, plan.after.macs)
    assert all(len(kept) < plan.widths[layer] for layer, kept in plan.kept.items() if layer != "logits")
