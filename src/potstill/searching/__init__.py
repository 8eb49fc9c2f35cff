"""`search`: the best temperature, weights and maps of a recipe within a budget, on the validation rows alone."""

from potstill.searching.run import SearchOutcome, search
from potstill.searching.space import Choice, Range, parse_space

__all__ = ["Choice", "Range", "SearchOutcome", "parse_space", "search"]
