"""Training: configuration, loop, averaged weights, checkpoints, held-out evaluation and callbacks."""

from anem.train.callbacks import Callback, StepRecord, default_callbacks
from anem.train.checkpoint import Snapshot, TrainState
from anem.train.config import TrainConfig, load_config
from anem.train.evaluate import Report
from anem.train.loop import NonFiniteLoss, train
from anem.train.parts import Parts

__all__ = [
    "Callback",
    "NonFiniteLoss",
    "Parts",
    "Report",
    "Snapshot",
    "StepRecord",
    "TrainConfig",
    "TrainState",
    "default_callbacks",
    "load_config",
    "train",
]
