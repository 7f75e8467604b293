"""Reads gguf files, the format of llama.cpp, as the Hugging Face checkpoints they were made from, and writes them.

Needs the package `gguf` (`pip install -e ".[gguf]"`). The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
The meaning of names and values follows llama.cpp's own converter: https://github.com/ggml-org/llama.cpp, conversion/.
"""

from lit_gpt.convert.gguf.parts import parts_of
from lit_gpt.convert.gguf.reading import open_gguf
from lit_gpt.convert.gguf.tokens import TOKENIZER_FILES, write_tokenizer
from lit_gpt.convert.gguf.writing import write_gguf

__all__ = ["TOKENIZER_FILES", "open_gguf", "parts_of", "write_gguf", "write_tokenizer"]
