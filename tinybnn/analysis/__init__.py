"""What a model is and what it costs."""

from tinybnn.analysis.summary import Summary, summary

__all__ = ["Summary", "summary"]
