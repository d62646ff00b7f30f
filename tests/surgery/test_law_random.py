"""The law of surgery on random networks, in float64 to 1e-6, and in float32 on this backend and on JAX to 1e-3."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from law import assert_close, assert_law, lifelike, run, silenced
from random_networks import random_network

from tfcompress import profile, prune_channels
from tfcompress.surgery import ChannelGraph

SEEDS = st.integers(0, 2**32 - 1)
COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


def network_with_examples(seed):
    """A network with signals of order one, and inputs for it."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    model = random_network(seed)
    rng = np.random.default_rng(seed)
    x = [rng.normal(size=(8, *spec.shape[1:])) for spec in model.inputs]
    return lifelike(model, x, seed), x


def check(seed):
    note(f"random_network({seed})")
    model, x = network_with_examples(seed)
    rng = np.random.default_rng(seed)
    criterion = ("l1", "l2", "random")[rng.integers(3)]
    pruned, plan = assert_law(model, x, control=False, ratio=rng.uniform(0.2, 0.8), criterion=criterion)
    counted = profile(pruned)
    assert (counted.params, counted.macs) == (plan.after.params, plan.after.macs)


@settings(max_examples=10, **COMMON)
@given(SEEDS)
def test_random_networks(seed):
    check(seed)


@pytest.mark.slow
@settings(max_examples=300, **COMMON)
@given(SEEDS)
def test_hundreds_of_random_networks(seed):
    check(seed)


@pytest.mark.parametrize("seed", range(4))
def test_a_permuted_layer_is_noticed(seed):
    model, x = network_with_examples(seed)
    assert ChannelGraph(model).groups
    assert_law(model, x, ratio=0.5)


@pytest.mark.parametrize("seed", range(10, 14))
def test_float32(seed):
    float32_law(seed)


def float32_law(seed):
    model, x = network_with_examples(seed)
    x = [np.asarray(value, "float32") for value in x]
    pruned, plan = prune_channels(model, ratio=0.5)
    assert_close(run(pruned, x), silenced(model, plan.kept, x), 1e-3)


IMPORTS = """
import sys
import tfcompress, tfcompress.surgery.sensitivity, tfcompress.criteria, tfcompress.profiling, tfcompress.models
import keras
assert keras.backend.backend() == "jax"
assert "tensorflow" not in sys.modules, "the package imported tensorflow"
sys.path.insert(0, {folder!r})
from test_law_random import *
"""
SMALL = """
inputs = keras.Input((8, 8, 3))
x = keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, activation="relu")(inputs))
x = keras.layers.Add()([x, keras.layers.Conv2D(8, 1)(x)])
model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
x = [np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")]
pruned, plan = prune_channels(lifelike(model, x), ratio=0.5)
assert pruned.count_params() < 0.6 * model.count_params()
assert_close(run(pruned, x), silenced(model, plan.kept, x), 1e-3)
"""
MANY = """
for seed in range(20, 50):
    float32_law(seed)
"""


def on_jax(program):
    program = IMPORTS.format(folder=str(Path(__file__).parent)) + program
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=3000
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_jax_imports_no_tensorflow_and_holds():
    on_jax(SMALL)


@pytest.mark.slow
def test_jax_on_many_networks():
    on_jax(MANY)
