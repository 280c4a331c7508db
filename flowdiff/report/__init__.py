"""Run folders as a table, plots and one page. Needs no torch and no network."""

from flowdiff.report.report import Report, read, report

__all__ = ["Report", "read", "report"]
