"""Conversations whose texts go wrong easily, and tokenizers with the special tokens of several kinds of models."""

import json

from conftest import write_tokenizer

from lit_gpt.prompts import Turn

ODD = [" two  spaces ", "naïve 🦙 'quoted' \"x\" \\n {{ 7 * 7 }} {prompt} {system}", "\nstarts and ends\n"]
SPECIAL = ("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|endoftext|>")
KINDS = {  # bos, eos, whether the tokenizer begins a text with bos, tokens it has besides
    "llama": ("<s>", "</s>", True, ()),
    "llama, told not to begin": ("<s>", "</s>", False, ()),
    "gemma": ("<s>", "</s>", True, SPECIAL),
    "qwen": (None, "<|endoftext|>", False, SPECIAL),
    "smollm2": ("<|im_start|>", "<|im_end|>", False, SPECIAL),
}


def folder_of(kind, folder):
    """Writes a tiny tokenizer with the special tokens of a kind of model, and returns its folder."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing

    bos, eos, begins, special = KINDS[kind]
    write_tokenizer(folder)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(list(special))
    if begins:
        backend.post_processor = TemplateProcessing(f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))])
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, "add_bos_token": begins}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def conversations():
    """Returns conversations of one turn and several, with and without a system text, the last answered or not."""
    texts = [("Q1", "A1", "Q2"), *((ODD[i], ODD[i - 1], ODD[i - 2]) for i in range(3))]
    made = [
        [Turn("user", a), Turn("assistant", b), Turn("user", c), Turn("assistant", a)][:n]
        for a, b, c in texts
        for n in (1, 2, 3, 4)
    ]
    return made + [[Turn("system", "Be brief."), *turns] for turns in made]


def messages(turns):
    """Returns turns in the form that chat templates take."""
    return [{"role": t.role, "content": t.text} for t in turns]


def text_of(exchanges, eos):
    """Returns the whole text of exchanges, with eos after each answer that has no end of its own."""
    return "".join(e.prompt + ("" if e.answer is None else e.answer + (e.end or eos)) for e in exchanges)
