"""A fine-tuning starts where it started, wherever it is resumed."""

import numpy as np
import pytest

from experiments import filters
from tfcompress.models import resnet


def test_pruned_network_is_computed_once(tmp_path, rng, monkeypatch):
    unpruned, images = resnet(8), rng.random((64, 32, 32, 3), dtype="float32")
    budget = {"macs_reduction": 0.5}
    first, plan = filters._pruned(unpruned, "l2", budget, images, tmp_path)

    def again(*_, **__):
        raise AssertionError("pruned again")

    monkeypatch.setattr("tfcompress.surgery.prune_channels", again)
    monkeypatch.setattr("tfcompress.prune_channels", again, raising=False)
    second, same_plan = filters._pruned(unpruned, "l2", budget, images, tmp_path)
    assert same_plan.to_json() == plan.to_json() and 0.5 <= plan.macs_reduction < 0.6
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    unpruned.layers[1].set_weights([2 * w for w in unpruned.layers[1].get_weights()])
    for other in (budget, {"macs_reduction": 0.6}):
        with pytest.raises(AssertionError, match="pruned again"):
            filters._pruned(unpruned, "l2", other, images, tmp_path)
