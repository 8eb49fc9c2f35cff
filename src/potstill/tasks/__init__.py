"""Tasks: what is predicted, how rows become batches, and what the outputs mean. One file a task."""

from potstill.tasks.base import LoadedModel, Task, load_tokenizer
from potstill.tasks.causal_lm import CausalLM
from potstill.tasks.text_classification import TextClassification

__all__ = ["CausalLM", "LoadedModel", "Task", "TextClassification", "load_tokenizer"]
