"""Checks the texts of a data set: duplicates and near-duplicates, encoding faults, rows in another language."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from lit_gpt.data.curate.check.finding import Finding, counted
from lit_gpt.data.prepare.apart import groups_apart
from lit_gpt.data.prepare.texts import Texts, firsts_of
from lit_gpt.errors import UserError

_UTF_8_AS_WINDOWS_1252 = "".join(
    sorted({bytes([b]).decode("cp1252", "ignore") or chr(b) for b in range(0x80, 0xC0)})
)  # the second and later bytes of a character, where UTF-8 was read as Windows-1252
FAULTS = {
    "have a character that could not be decoded (U+FFFD)": re.compile("\ufffd"),
    "have text in UTF-8 that was read as Latin-1": re.compile(
        f"[ÂÃ][{re.escape(_UTF_8_AS_WINDOWS_1252)}]"
        f"|[Ä-Åâ-ï]\u20ac[{re.escape(_UTF_8_AS_WINDOWS_1252)}]|ðŸ[{re.escape(_UTF_8_AS_WINDOWS_1252)}]"
    ),
    "have a control character": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]"),
}
_COMMON = 0.1
"""Fraction of the rows from which on a line counts as the prompt style's, which does not make two rows alike."""
_MOST_COUNTED = 2000
"""Most rows that show what the prompt style adds, spread over all rows."""
_SURE = 0.9
"""Least probability with which a row counts as of another language."""
_NO_LANGUAGE = "zxx"
"""py3langid's name for numbers, code and the like."""
_LEAST_TEXT = 40
"""Fewest letters of a text whose language is identified."""


def check_texts(name_of: Callable[[int], str], texts: Texts, n_train: int, threshold: float) -> list[Finding]:
    """Returns findings about duplicate rows and encoding faults.

    Args:
        name_of: returns the location of a text by its index, as in "sample 3 of train".
        n_train: number of texts for training; they come first.
        threshold: least similarity of near-duplicates.
    """
    return [*_duplicates(name_of, texts, n_train, threshold), *_faults(name_of, texts)]


def _duplicates(name_of: Callable[[int], str], texts: Texts, n_train: int, threshold: float) -> list[Finding]:
    """Counts rows that repeat an earlier one, exactly or nearly, and validation rows that are in the training set."""
    same, _ = firsts_of(texts, len(texts))
    near = groups_apart(without_common(texts), threshold)
    index = np.arange(len(texts))
    exact = ((same != index) & (index < n_train)).nonzero()[0]
    close = ((near != index) & (same == index) & (index < n_train)).nonzero()[0]
    leaked = ((near < n_train) & (index >= n_train)).nonzero()[0]

    def pair(rows: np.ndarray, of: np.ndarray) -> str:
        if not len(rows):
            return ""
        first = int(rows[0])
        return f"{name_of(first)} and {name_of(int(of[first])).removesuffix(' of train')}"

    hint = "its loss tells less about new texts"
    n_val = len(texts) - n_train
    return [
        counted("train", len(exact), n_train, what="repeat an earlier one", example=pair(exact, same)),
        counted("train", len(close), n_train, what="are nearly the same as an earlier one", example=pair(close, near)),
        counted(
            "val",
            len(leaked),
            total=n_val,
            what="are nearly the same as one of train",
            example=pair(leaked, near),
            hint=hint,
        ),
    ]


def without_common(texts: Sequence[str]) -> Texts:
    """Returns the texts without what the prompt style adds: lines of many rows, and the beginning of most.

    Fewer than 20 texts are returned as they are: in those, a style's text cannot be told from others.
    """
    if len(texts) < 20:
        return Texts(texts)
    some = texts[:: -(-len(texts) // _MOST_COUNTED)]
    counts = Counter(line for text in some for line in set(text.split("\n")))
    common = {line for line, n in counts.items() if n > _COMMON * len(some)}

    def own(text: str) -> str:
        return "\n".join(line for line in text.split("\n") if line not in common)

    ordered = sorted(map(own, some))
    start = _shared(ordered[len(some) // 4], ordered[3 * len(some) // 4])  # the common prefix of half of them
    return Texts(own(text).removeprefix(start) or text for text in texts)


def _shared(a: str, b: str) -> str:
    """Returns the common prefix of two texts."""
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]


def _faults(name_of: Callable[[int], str], texts: Texts) -> list[Finding]:
    """Counts rows with signs of a wrong decoding."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for i, text in enumerate(texts):
        for what, match in ((what, pattern.search(text)) for what, pattern in FAULTS.items()):
            if match:
                counts[what] += 1
                examples.setdefault(what, f"{name_of(i)} ({_around(match)})")
    return [counted("all", counts[what], len(texts), what=what, example=examples.get(what, "")) for what in FAULTS]


def _around(match: re.Match[str]) -> str:
    """Returns the match with some of the text on both sides, as a Python literal."""
    text = match.string[max(0, match.start() - 12) : match.end() + 12]
    return repr(text)


def check_language(name_of: Callable[[int], str], texts: Texts, language: str) -> Finding:
    """Counts rows that are surely in another language, by py3langid; short rows are left out.

    Raises:
        UserError: the library is not installed, or does not know the language.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as e:
        raise UserError("--language needs py3langid; pip install py3langid") from e
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if language not in identifier.labels:
        raise UserError(f"--language {language!r} is not known; known are {', '.join(sorted(identifier.labels))}")
    others: Counter[str] = Counter()
    example = ""
    for i, text in enumerate(without_common(texts)):
        if sum(c.isalpha() for c in text) < _LEAST_TEXT:
            continue
        found, probability = identifier.classify(text)
        if found not in (language, _NO_LANGUAGE) and probability >= _SURE:
            others[found] += 1
            example = example or f"{name_of(i)} ({found}: {text.strip()[:40]!r})"
    named = ", ".join(f"{n:,} {code}" for code, n in others.most_common(5))
    return counted(
        "all",
        others.total(),
        total=len(texts),
        what=f"are in another language than {language}",
        example=example,
        hint=named,
    )
