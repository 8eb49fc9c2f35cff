"""What can be observed in a model, as plain tensors: the one seam between models and losses."""

from potstill.knowledge.architectures import ModelShape, architecture, describe
from potstill.knowledge.observe import TEACHERS, Observer, inputs_for, observe, own_columns
from potstill.knowledge.types import Knowledge, Layer, Logits, Needs

__all__ = [
    "TEACHERS",
    "Knowledge",
    "Layer",
    "Logits",
    "ModelShape",
    "Needs",
    "Observer",
    "architecture",
    "describe",
    "inputs_for",
    "observe",
    "own_columns",
]
