"""Chooses the model name in a gguf file, by which llama.cpp decides how special tokens are cut out of a text.

See the end of llama_vocab::impl::load in its src/llama-vocab.cpp: under one of Phi 3's names most special tokens take
the whitespace after them along, and a file that lacks four of Phi 3's tokens is refused.
"""

import re
from collections.abc import Sequence

from lit_gpt.tokenizer import Tokenizer

_PHI_3, _MODERN_BERT = re.compile("(phi)-?(3)", re.IGNORECASE), re.compile("(modern)-(bert)", re.IGNORECASE)
_NEEDED = ("</s>", "<unk>", "<s>", "<|endoftext|>")
"""Tokens without which a file with Phi 3's name is refused; all but the first of them leave whitespace alone."""


def name_in_file(name: str, tokenizer: Tokenizer, special: Sequence[str]) -> str:
    """Returns the model's name, changed if necessary to contain "Phi-3" exactly if the tokenizer behaves like Phi 3's.

    Args:
        special: the tokens that are cut out of a text before the rest is split.
    """
    if _absorbs_whitespace(tokenizer, special):
        return name if _PHI_3.search(name) else f"{name} (Phi-3)"
    return _MODERN_BERT.sub(r"\1 \2", _PHI_3.sub(r"\1 \2", name))


def _absorbs_whitespace(tokenizer: Tokenizer, special: Sequence[str]) -> bool:
    """Returns whether most special tokens absorb the whitespace after them, and Phi 3's own tokens exist."""
    if not set(special) >= set(_NEEDED):
        return False
    tested = [token for token in special if token not in _NEEDED[1:]]
    alike = [tokenizer.encode(f"a{t}\n b") == tokenizer.encode(f"a{t}b") for t in tested]
    return 2 * sum(alike) > len(tested)
