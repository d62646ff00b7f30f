"""Training that can be killed and resumed: one `fit` for Keras 3 and tf_keras models on any backend."""

from tfcompress.training.checkpoint import CheckpointError
from tfcompress.training.config import TrainingConfig
from tfcompress.training.fit import fit
from tfcompress.training.predict import accuracy, predict
from tfcompress.training.soft_pruning import SoftPruning
from tfcompress.training.teacher import CachedTeacher

__all__ = ["CachedTeacher", "CheckpointError", "SoftPruning", "TrainingConfig", "accuracy", "fit", "predict"]
