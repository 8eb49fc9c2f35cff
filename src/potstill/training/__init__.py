"""One trainer for everything: a thin subclass of the Hugging Face `Trainer` around student and projections."""

from potstill.training.distiller import Distiller
from potstill.training.precision import Precision, detect_precision, teacher_at
from potstill.training.settings import TrainSettings
from potstill.training.trainer import DistillationTrainer

__all__ = ["DistillationTrainer", "Distiller", "Precision", "TrainSettings", "detect_precision", "teacher_at"]
