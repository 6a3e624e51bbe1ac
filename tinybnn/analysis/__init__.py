"""What a model is, what it costs, and on what machine that was measured."""

from tinybnn.analysis.machine import machine, processor
from tinybnn.analysis.summary import Summary, summary

__all__ = ["Summary", "machine", "processor", "summary"]
