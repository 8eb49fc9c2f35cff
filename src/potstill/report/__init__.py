"""The reports of a run and of a comparison, from results.json or comparison.json alone: they compute nothing."""

from potstill.report.build import load_results, write_report
from potstill.report.comparison import write_comparison

__all__ = ["load_results", "write_comparison", "write_report"]
