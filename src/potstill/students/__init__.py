"""Students: small models made from a teacher, from a config, or from a checkpoint of their own."""

from potstill.students.build import build_student, reinitialised
from potstill.students.configuration import configuration, kept_configuration, stands_alone, with_tokens_of
from potstill.students.vocabulary import Vocabulary, cut_tokenizer, cut_vocabulary, special_ids
from potstill.students.width import cut_width, sizes_of

__all__ = [
    "Vocabulary",
    "build_student",
    "configuration",
    "cut_tokenizer",
    "cut_vocabulary",
    "cut_width",
    "kept_configuration",
    "reinitialised",
    "sizes_of",
    "special_ids",
    "stands_alone",
    "with_tokens_of",
]
