import keras
import pytest


@pytest.fixture(autouse=True)
def same_initial_weights():
    """Initial weights do not depend on which tests ran before."""
    keras.utils.set_random_seed(0)
