"""Prompt styles by name: how a conversation becomes the text that the model sees."""

from lit_gpt.prompts.styles import PROMPTS, make_prompt
from lit_gpt.prompts.turns import Turn

__all__ = ["PROMPTS", "Turn", "make_prompt"]
