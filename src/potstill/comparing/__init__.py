"""`compare`: methods held against each other fairly, by one command."""

from potstill.comparing.axes import Axis, axes
from potstill.comparing.cells import Cell, cells
from potstill.comparing.run import ComparisonOutcome, compare

__all__ = ["Axis", "Cell", "ComparisonOutcome", "axes", "cells", "compare"]
