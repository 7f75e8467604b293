"""Lists how byte-level tokenizers split a text before merging: llama.cpp's names, and the steps that do the same.

A file has only the name; the regular expressions are in llama.cpp's code (src/llama-vocab.cpp).
"""

from typing import Any, NamedTuple

from lit_gpt.errors import UserError

_GPT_4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    + _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    + _CONTRACTIONS
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Splitting(NamedTuple):
    """A way to split a text into pieces before merging."""

    name: str
    """Value of `tokenizer.ggml.pre`."""
    steps: tuple[str, ...]
    """Steps in order: names of steps in `steps_of`, or regular expressions whose matches become pieces."""
    ignore_merges: bool = False
    """Whether a piece that is a token itself is not built by merges."""
    nfc: bool = False
    """Whether the text is normalized to NFC first, which llama.cpp leaves to the caller."""
    adds_bos: bool = False
    """Whether llama.cpp puts bos before a text by default."""
    others: tuple[str, ...] = ()
    """Other names for the same splitting."""


SPLITTINGS = (
    Splitting("gpt-2", ("gpt-2",), others=("olmo", "mpt", "phi-2", "mellum", "a.x-4.0")),
    Splitting("smollm", (r"\p{N}", "gpt-2"), others=("starcoder", "refact", "command-r")),
    Splitting("falcon", ("punctuation", "gpt-2", "digits", "[0-9][0-9][0-9]")),
    Splitting(
        "llama-bpe",
        (_GPT_4, "bytes"),
        ignore_merges=True,
        adds_bos=True,
        others=("llama3", "llama-v3", "falcon3", "midm-2.0"),
    ),
    Splitting("dbrx", (_GPT_4, "bytes"), others=("smaug-bpe",)),
    Splitting("qwen2", (_GPT_4.replace("{1,3}", ""), "bytes"), nfc=True, others=("deepseek-r1-qwen", "megrez")),
    Splitting("stablelm2", (_GPT_4.replace("{1,3}", ""), "bytes")),
    Splitting("tekken", (_TEKKEN, "bytes"), ignore_merges=True, adds_bos=True),
    Splitting("gpt-4o", (_GPT_4O, "bytes"), others=("llama4",)),
)
SAMPLE = (
    "I've been there, we'RE 'sure'; it's DON'T Don'T  OK? 1 23 456 7890 12345678 3.14 v2a 9b\n \n\n\t x\r\n  y   z\n"
    "foo_bar(baz)[0]={'a': \"b\"};//!?...!!! <|x|> C++ $5+6=^~` "
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u65e5\u672c\u8a9e \u041f\u0440\u0438\u0432\u0435\u0442123 "
    "किताबें ๑๒๓ ²½ "
    "naïve cafe\u0301 🦙🦙🏽 a/b\n/c camelCaseWORDSHere ABCdef   \n"
)
"""A text that any two of SPLITTINGS split differently, unless their other fields tell them apart."""


def steps_of(splitting: Splitting) -> Any:
    """Returns the pre-tokenizer of the library `tokenizers` for a splitting."""
    from tokenizers import Regex, pre_tokenizers

    made = {
        "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
        "bytes": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        "punctuation": lambda: pre_tokenizers.Punctuation(behavior="contiguous"),
        "digits": lambda: pre_tokenizers.Digits(individual_digits=False),
    }
    steps = [made[s]() if s in made else pre_tokenizers.Split(Regex(s), "isolated") for s in splitting.steps]
    return pre_tokenizers.Sequence(steps)


def find_splitting(name: str) -> Splitting | None:
    """Returns the splitting with a name in a gguf file; None if it is unknown."""
    return next((s for s in SPLITTINGS if name in (s.name, *s.others)), None)


def recognize_splitting(tokenizer: Any, where: str) -> Splitting:
    """Returns the splitting that a tokenizer of the library `tokenizers` does, found by trying it on SAMPLE.

    Raises:
        UserError: llama.cpp is not known to have such a splitting.
    """
    nfc = tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str("e\u0301") == "\u00e9"
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(SAMPLE)]
    same = [s for s in SPLITTINGS if [p for p, _ in steps_of(s).pre_tokenize_str(SAMPLE)] == pieces]
    if not same:
        raise UserError(f"{where} splits texts in a way that is not known to be one of llama.cpp's; use --format hf")
    ignore_merges = bool(getattr(tokenizer.model, "ignore_merges", False))
    return min(same, key=lambda s: (s.ignore_merges != ignore_merges, s.nfc != nfc))
