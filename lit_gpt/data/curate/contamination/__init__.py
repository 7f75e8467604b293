"""Finds evaluation questions in the training text by word n-grams, reports them by task, and drops such rows."""

from lit_gpt.data.curate.contamination.run import check_contamination

__all__ = ["check_contamination"]
