"""Checks a prepared data set: what a model would learn from it, and what is wrong with it."""

from lit_gpt.data.curate.check.finding import Finding
from lit_gpt.data.curate.check.run import check

__all__ = ["Finding", "check"]
