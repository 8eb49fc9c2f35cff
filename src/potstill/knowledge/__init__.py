"""What can be observed in a model, as plain tensors: the one seam between models and losses."""

from potstill.knowledge.architectures import ModelShape, architecture, describe
from potstill.knowledge.observe import Observer, inputs_for, observe
from potstill.knowledge.types import Knowledge, Layer, Needs

__all__ = ["Knowledge", "Layer", "ModelShape", "Needs", "Observer", "architecture", "describe", "inputs_for", "observe"]
