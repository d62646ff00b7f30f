"""The hyperparameters of one training."""

import dataclasses

SCHEDULES = ("cosine", "one_cycle", "step", "constant")
OPTIMIZERS = ("sgd", "adam")
PRECISIONS = ("float32", "mixed_bfloat16")
AUGMENTATIONS = ("crop_padding", "flip", "rotation", "scaling", "cutout", "cutmix")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Hyperparameters of `tfcompress.training.fit`.

    Attributes:
        epochs: passes over the training set.
        batch_size: examples per step; a last partial batch is trained too.
        optimizer: "sgd" (Nesterov momentum 0.9) or "adam".
        learning_rate: the peak rate.
        schedule: "cosine" (linear warm-up, then half a cosine to 0), "one_cycle" (Smith 2018: cosine from 1/25 of the
            peak up to it and down to 1/10,000), "step" (x 0.2 at 30, 60 and 80 %) or "constant".
        warmup_epochs: epochs to reach the peak ("one_cycle": 30 % of the training if 0).
        weight_decay: decoupled, as Keras counts it, on kernels only. L2 of strength w in the gradient of SGD with
            momentum 0.9 corresponds to 10 w here.
        label_smoothing: probability mass spread over all classes, in [0, 1).
        crop_padding: random crop after padding every side by so many zero pixels.
        flip: random horizontal flip.
        rotation: random rotation by at most so many degrees, bilinear.
        scaling: random zoom by a factor in [1 - scaling, 1 + scaling], bilinear; in [0, 1).
        cutout: side in pixels of a square at a random place that is hidden (DeVries & Taylor 2017, "Improved
            regularization of convolutional neural networks with cutout").
        cutmix: fraction of the images, in [0, 1], that show another one in a rectangle; their labels are mixed by area
            (Yun et al. 2019, "CutMix: regularization strategy to train strong classifiers"). A teacher is asked about
            the mixed images.
        distillation_weight: lambda of (1 - lambda) CE(labels) + lambda T^2 CE(teacher); used when there is a teacher.
        temperature: T of the distillation loss (Hinton et al. 2015).
        precision: "float32", or "mixed_bfloat16" (float32 weights, bfloat16 arithmetic; Keras 3 models only).
        seed: of shuffling, augmentation and dropout.
    """

    epochs: int
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    rotation: float = 0.0
    scaling: float = 0.0
    cutout: int = 0
    cutmix: float = 0.0
    distillation_weight: float = 0.9
    temperature: float = 3.0
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self):
        for name, choices in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}. Received: {getattr(self, name)!r}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1. Received: {getattr(self, name)}")
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive. Received: {getattr(self, name)}")
        for name in ("warmup_epochs", "weight_decay", "crop_padding", "rotation", "cutout"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative. Received: {getattr(self, name)}")
        for name in ("label_smoothing", "scaling"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1). Received: {getattr(self, name)}")
        if not 0 <= self.cutmix <= 1:
            raise ValueError(f"cutmix must be in [0, 1]. Received: {self.cutmix}")
        if not 0 <= self.distillation_weight <= 1:
            raise ValueError(f"distillation_weight must be in [0, 1]. Received: {self.distillation_weight}")
