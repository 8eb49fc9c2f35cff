"""Tasks: what is predicted, how rows become batches, and what the outputs mean. One file a task."""

from potstill.tasks.base import LoadedModel, Reader, Task
from potstill.tasks.causal_lm import CausalLM
from potstill.tasks.image_classification import ImageClassification
from potstill.tasks.images import ImageReader
from potstill.tasks.label_maps import MapClasses
from potstill.tasks.semantic_segmentation import SemanticSegmentation
from potstill.tasks.text_classification import TextClassification
from potstill.tasks.tokens import load_tokenizer

__all__ = [
    "CausalLM",
    "ImageClassification",
    "ImageReader",
    "LoadedModel",
    "MapClasses",
    "Reader",
    "SemanticSegmentation",
    "Task",
    "TextClassification",
    "load_tokenizer",
]
