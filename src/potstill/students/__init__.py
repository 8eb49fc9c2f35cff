"""Students: small models made from a teacher, from a config, or from a checkpoint of their own."""

from potstill.students.build import build_student, reinitialised
from potstill.students.vocabulary import Vocabulary, cut_tokenizer, cut_vocabulary, special_ids
from potstill.students.width import cut_width, sizes_of

__all__ = [
    "Vocabulary",
    "build_student",
    "cut_tokenizer",
    "cut_vocabulary",
    "cut_width",
    "reinitialised",
    "sizes_of",
    "special_ids",
]
