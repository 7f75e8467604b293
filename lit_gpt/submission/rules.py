"""What the challenge says of data, and under which licenses models and data sets stand, as far as their names tell."""

import re
from collections.abc import Iterable

_TEXTS_OF_OTHERS = "its answers were written by"
FORBIDDEN = {
    "alpaca_libre": f"{_TEXTS_OF_OTHERS} a model of OpenAI; the challenge's starter guide took it back",
    "alpaca_gpt4": f"{_TEXTS_OF_OTHERS} GPT-4",
    "code_alpaca": f"{_TEXTS_OF_OTHERS} text-davinci-003",
    "alpaca": f"{_TEXTS_OF_OTHERS} text-davinci-003",
    "self_instruct": f"{_TEXTS_OF_OTHERS} GPT-3",
    "unnatural_instructions": f"{_TEXTS_OF_OTHERS} text-davinci-002",
    "sharegpt": f"{_TEXTS_OF_OTHERS} ChatGPT",
    "gpt4all": f"{_TEXTS_OF_OTHERS} GPT-3.5",
    "baize": f"{_TEXTS_OF_OTHERS} ChatGPT",
    "wizardlm": f"{_TEXTS_OF_OTHERS} ChatGPT",
    "evol_instruct": f"{_TEXTS_OF_OTHERS} ChatGPT",
    "openorca": f"{_TEXTS_OF_OTHERS} GPT-3.5 and GPT-4",
    "open_orca": f"{_TEXTS_OF_OTHERS} GPT-3.5 and GPT-4",
    "ultrachat": f"{_TEXTS_OF_OTHERS} ChatGPT",
}
"""Name of a data set, its words joined by underscores -> why the challenge forbids it: texts of models whose license
does not allow it (https://llm-efficiency-challenge.github.io/challenge)."""

_LICENSES_OF_DATA = {
    "dolly": "CC BY-SA 3.0 (Databricks)",
    "oasst": "Apache-2.0 (LAION)",
    "oasst1": "Apache-2.0 (LAION)",
    "lima": "CC BY-NC-SA, or stricter where a source is (Meta)",
    "longform": "MIT for the data set; its texts have the licenses of their sources",
    "alpaca": "CC BY-NC 4.0 (Stanford)",
}
_LICENSES_OF_BASES = {
    "openlm-research/open_llama": "Apache-2.0",
    "mistralai/Mistral-7B-v0.1": "Apache-2.0",
    "EleutherAI/pythia": "Apache-2.0",
    "tiiuae/falcon-7b": "Apache-2.0",
    "tiiuae/falcon-40b": "Apache-2.0",
    "togethercomputer/RedPajama-INCITE": "Apache-2.0",
    "HuggingFaceTB/SmolLM2": "Apache-2.0",
    "stabilityai/stablelm-base-alpha": "CC BY-SA 4.0",
    "meta-llama/Llama-2": "Llama 2 Community License Agreement",
}
"""How the name of a model on the hub begins -> its license."""


def forbidden(names: Iterable[str], allowed: Iterable[str]) -> tuple[str, str] | None:
    """Returns the data set that the challenge forbids and why; None if no name is that of one.

    Args:
        names: paths, addresses and names on the hub of what was trained on.
        allowed: names that are taken all the same.
    """
    let_through = {_words(name).strip("_") for name in allowed}
    for name in names:
        words = _words(name)
        known = [key for key in FORBIDDEN if f"_{key}_" in words or f"_{key.replace('_', '')}_" in words]
        if known and known[0] not in let_through:
            return known[0], FORBIDDEN[known[0]]
    return None


def is_instructed(repo: str) -> bool:
    """Returns whether a model of the hub follows instructions already, by its name."""
    return bool(
        {"instruct", "chat", "it", "sft", "dpo", "rlhf", "tuned"} & set(_words(repo.partition("/")[2]).split("_"))
    )


def license_of_base(repo: str | None) -> str | None:
    """Returns the license of a model of the hub, None if it is not known."""
    found = [text for start, text in _LICENSES_OF_BASES.items() if (repo or "").lower().startswith(start.lower())]
    return found[0] if found else None


def licenses_of_data(names: Iterable[str]) -> list[str]:
    """Returns what is known of the licenses of data sets, as `name: license`."""
    words = "".join(map(_words, names))
    return [f"{key}: {text}" for key, text in _LICENSES_OF_DATA.items() if f"_{key}_" in words]


def _words(name: str) -> str:
    """Returns the words of a name between underscores: `data/Alpaca-Libre.json` is `_data_alpaca_libre_json_`."""
    return "_" + "_".join(re.findall(r"[a-z]+\d*[a-z]*|\d+", name.lower())) + "_"
