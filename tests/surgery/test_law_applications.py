"""The law of surgery on the architectures of `keras.applications`: 30 % of the channels, random weights."""

import keras
import numpy as np
import pytest
from law import assert_law, lifelike

# The smallest input that each accepts, if not 32.
SIZE = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}
ALL = [name for name in dir(keras.applications) if name[0].isupper()]


def test_the_list_is_whole():
    assert len(ALL) == 40


def test_the_smallest_pruned_by_30_percent_equals_silenced():
    check("MobileNetV3Small")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_pruned_by_30_percent_equals_silenced(name):
    check(name)


def check(name):
    size = SIZE.get(name, 32)
    keras.utils.clear_session()
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    x = np.random.default_rng(0).uniform(0, 255, (16, size, size, 3))
    lifelike(model, x)
    _, plan = assert_law(model, [x[:2]], ratio=0.3)
    removed = sum(plan.widths[layer] - len(kept) for layer, kept in plan.kept.items())
    assert removed > 0.1 * sum(plan.widths.values())
