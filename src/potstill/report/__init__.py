"""The report of a run, from results.json alone: it computes nothing."""

from potstill.report.build import load_results, write_report

__all__ = ["load_results", "write_report"]
