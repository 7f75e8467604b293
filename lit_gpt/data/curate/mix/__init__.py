"""Mixes several sources into one prepared data set."""

from lit_gpt.data.curate.mix.run import mix

__all__ = ["mix"]
