"""Experiments: each file gives one table or figure."""
