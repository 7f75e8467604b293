"""Evaluation questions in the training text: found by runs of common words, reported by task, dropped if wanted."""

from lit_gpt.data.curate.contamination.run import check_contamination

__all__ = ["check_contamination"]
