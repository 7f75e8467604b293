"""Turns text into token ids and back: `tokenizer.json` or `tokenizer.model` behind one interface."""

from lit_gpt.tokenizer.backends import FILES
from lit_gpt.tokenizer.stream import StreamDecoder
from lit_gpt.tokenizer.tokenizer import Tokenizer

__all__ = ["FILES", "StreamDecoder", "Tokenizer"]
