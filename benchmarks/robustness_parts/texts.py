"""Damages what turns text into tokens: tokenizers, their settings, and chat templates."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from damage import flipped, mutated, with_content
from robustness_parts.campaign import Case, Section
from robustness_parts.material import Material, calling, copied

_CHAT = [{"messages": [{"role": "user", "content": f"say why {thing}"}, {"role": "assistant", "content": "ab cd"}]}
         for thing in ("llamas eat grass", "iron melts late", "seven is prime", "the moon pulls tides", "salt",
                       "bread needs yeast", "rivers reach seas", "glass is sand", "owls hunt at night")]  # fmt: skip
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[' + message['content'] + ']' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{% endif %}"
)
_PIECES = (
    "{% for i in range(10**9) %}x{% endfor %}", "{{ 'x' * 10**10 }}", "{{ messages[99] }}", "{{ 1 / 0 }}", "{% if %}",
    "{{ ''.__class__.__mro__ }}", "{% include 'a' %}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ f(1) }}",
    "{{ raise_exception('no') }}", "{{ messages | tojson }}", "{{ [1] * 10**9 }}", "{% set x = messages %}{{ x }}",
    "{{ strftime_now('%Y') }}", "{{ 2 ** 10**7 }}", "{{ messages.append(1) }}", "{% break %}", "{{ none.x.y }}",
    "{{ '%s' % messages }}", "{{ '{0.__class__}'.format(1) }}", "{{ '%1000000000d' % 1 }}", "{% generation %}",
    "{{ '{:>9999999999}'.format(1) }}", "{{ lipsum(n=100000) }}", "{{ cycler }}", "{{ namespace(a=1).a }}", "\0", "{#",
    "{% for a in range(3000) %}{% for b in range(3000) %}{% for c in range(3000) %}{% endfor %}{% endfor %}"
    "{% endfor %}",
)  # fmt: skip
_SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False},
    "add_bos_token": True, "add_eos_token": False, "model_max_length": 2048, "clean_up_tokenization_spaces": False,
    "added_tokens_decoder": {"264": {"content": "<s>", "special": True}, "265": {"content": "</s>", "special": True}},
    "additional_special_tokens": ["<s>"], "pad_token": None, "unk_token": "<s>", "chat_template": _TEMPLATE,
}  # fmt: skip
_GENERATION = {"bos_token_id": 264, "eos_token_id": [265, 264], "pad_token_id": None, "max_length": 20}


def sections(material: Material) -> list[Section]:
    """Returns the sections of tokenizers and templates."""

    def section(name: str, make: Callable[[Material, Random, Path], Case]) -> Section:
        return Section(name, lambda random, place: make(material, random, place), lambda: _both(material))

    return [
        section("tokenizer_json", _tokenizer_json),
        section("tokenizer_model", _tokenizer_model),
        section("settings", _settings),
        section("templates", _templates),
    ]


def _both(material: Material) -> None:
    """Makes a checkpoint with each kind of tokenizer."""
    material.lit()
    material.sentencepiece()


def _case_of(folder: Path, damaged: Path, random: Random, style: str = "plain") -> Case:
    """Returns a script that tokenizes with what is in a folder: the preparation of data, or a generation."""
    place, n_bytes = folder.parent, damaged.stat().st_size
    if random.random() < 0.3:
        words = ("--checkpoint_dir", folder, "--prompt", "the king <s>", "--max_new_tokens", 2, "--prompt_style", style)
        return Case(calling("generate/base.py", *words, cwd=place), n_bytes)
    with_content(place / "rows.jsonl", "\n".join(map(json.dumps, _CHAT)))
    words = ("--checkpoint_dir", folder, "--json_path", place / "rows.jsonl", "--destination_path", place / "data")
    return Case(calling("scripts/prepare_json.py", *words, "--prompt_style", style, cwd=place), n_bytes)


def _tokenizer_json(material: Material, random: Random, place: Path) -> Case:
    """Changes values or bits of a tokenizer.json."""
    folder = copied(material.lit(), place / "tiny")
    path = folder / "tokenizer.json"
    if random.random() < 0.3:
        return _case_of(folder, with_content(path, flipped(path.read_bytes(), random)), random)
    value = json.loads(path.read_text(encoding="utf-8"))
    inner = random.choice((None, None, "model", "added_tokens", "pre_tokenizer", "decoder", "normalizer"))
    if inner == "normalizer":
        pattern = random.choice(("(a+)+$", "(", "\\1", "a{99999}"))
        value["normalizer"] = {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}
    elif inner:  # what is small, more often than vocabulary and merges would let it
        value[inner] = json.loads(_finite(mutated(value[inner], random)))
    return _case_of(folder, with_content(path, mutated(value, random) if inner is None else json.dumps(value)), random)


def _finite(text: str) -> str:
    """Returns JSON's text, or null where it is nested too deep to be put into another value."""
    return text if "[" * 500 not in text else "null"


def _tokenizer_model(material: Material, random: Random, place: Path) -> Case:
    """Changes bits of a tokenizer.model."""
    folder = copied(material.sentencepiece(), place / "tiny")
    path = folder / "tokenizer.model"
    end = None if random.random() < 0.7 else 500
    return _case_of(folder, with_content(path, flipped(path.read_bytes(), random, end)), random)


def _settings(material: Material, random: Random, place: Path) -> Case:
    """Changes tokenizer_config.json, generation_config.json or special_tokens_map.json."""
    folder = copied(material.lit() if random.random() < 0.7 else material.sentencepiece(), place / "tiny")
    with_content(folder / "tokenizer_config.json", json.dumps(_SETTINGS))
    name, value = random.choice(
        (
            ("tokenizer_config.json", _SETTINGS),
            ("tokenizer_config.json", _SETTINGS),
            ("generation_config.json", _GENERATION),
            ("special_tokens_map.json", {"bos_token": "<s>", "eos_token": {"content": "</s>"}}),
            ("added_tokens.json", {"<s>": 264, "<extra>": 266}),
        )
    )
    path = with_content(folder / name, mutated(value, random))
    return _case_of(folder, path, random, random.choice(("plain", "chat_template")))


def _templates(material: Material, random: Random, place: Path) -> Case:
    """Changes a chat template: characters of it, or pieces that need time, memory or what a sandbox forbids."""
    folder = copied(material.lit(), place / "tiny")
    text = _TEMPLATE
    for _ in range(random.choice((1, 1, 2))):
        at, kind = random.randrange(len(text)), random.random()
        if kind < 0.55:  # between two tags
            at = random.choice([i for i in range(len(text)) if text.startswith(("{%", "{{"), i)] or [0])
            text = text[:at] + random.choice(_PIECES) + text[at:]
        elif kind < 0.65:
            text = random.choice(_PIECES) + text
        elif kind < 0.8:
            text = text[:at] + text[at + random.choice((1, 2, 9)) :]
        else:
            text = text[:at] + random.choice(("{%", "%}", "{{", "}}", "'", "~", "|", "(", "[", "0")) + text[at:]
    with_content(folder / "tokenizer_config.json", json.dumps(_SETTINGS | {"chat_template": text}))
    path = folder / "tokenizer_config.json"
    if random.random() < 0.4:
        path = with_content(folder / "chat_template.jinja", text)
    return _case_of(folder, path, random, "chat_template")
