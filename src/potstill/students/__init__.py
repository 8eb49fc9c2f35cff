"""Students: small models made from a teacher, from a config, or from a checkpoint of their own."""

from potstill.students.build import build_student

__all__ = ["build_student"]
