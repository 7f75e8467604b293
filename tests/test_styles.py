"""The styles written down here show a conversation as the models' own chat templates do, and as the ones we write."""

import pytest
from styled_conversations import KINDS, conversations, folder_of, messages, text_of

from lit_gpt.args import PrepareArgs
from lit_gpt.data.prepare.account import Counts
from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.tokens import Encoder
from lit_gpt.errors import UserError
from lit_gpt.prompts import STYLES, Turn, ends_of, make_prompt, open_style, stop_ids
from lit_gpt.prompts.jinja import jinja_of
from lit_gpt.tokenizer import Tokenizer

SPLIT = (
    "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
)


def simple(system, user, ask, answer):
    """A template of the common form: each of a system text `s`, a user's text `c` and an answer `c` in its place."""
    return (
        f"{SPLIT}{{% if s %}}{{{{ {system} }}}}{{% endif %}}"
        "{% for m in rest %}{% set c = m['content'] %}"
        f"{{% if m['role'] == 'user' %}}{{{{ {user} }}}}{{% else %}}{{{{ {answer} }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {ask} }}}}{{% endif %}}"
    )


LLAMA_2 = (
    SPLIT + "{% for m in rest %}{% if loop.index0 == 0 and s %}"
    "{% set c = '<<SYS>>\n' + s + '\n<</SYS>>\n\n' + m['content'] %}{% else %}{% set c = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + c.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + c.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = simple(
    "'<|system|>\n' + s + eos_token + '\n'",
    "'<|user|>\n' + c + eos_token + '\n'",
    "'<|assistant|>\n'",
    "'<|assistant|>\n' + c + eos_token + '\n'",
)
TEMPLATES = {  # of the same behaviour as the models' own; the publishers' words are not needed
    "llama2": LLAMA_2,
    "codellama": LLAMA_2,
    "gemma": "{{ bos_token }}" + SPLIT + "{% for m in rest %}"
    "{% set role = 'model' if m['role'] == 'assistant' else 'user' %}{{ '<start_of_turn>' + role + '\n' }}"
    "{{ s + '\n\n' if loop.first and s else '' }}{{ m['content'] | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "tinyllama": ZEPHYR,
    "stablelm-zephyr": ZEPHYR,
    "phi-2": simple("s + '\n\n'", "'Instruct: ' + c + '\n'", "'Output:'", "'Output: ' + c + eos_token + '\n'"),
    "vicuna": simple("s + ' '", "'USER: ' + c + ' '", "'ASSISTANT:'", "'ASSISTANT: ' + c + eos_token"),
    "stablelm-alpha": simple(
        "'<|SYSTEM|>' + s", "'<|USER|>' + c", "'<|ASSISTANT|>'", "'<|ASSISTANT|>' + c + eos_token"
    ),
    "freewilly2": simple(
        "'### System:\n' + s + '\n\n'",
        "'### User:\n' + c + '\n\n'",
        "'### Assistant:\n'",
        "'### Assistant:\n' + c + eos_token + '\n\n'",
    ),
    "alpaca": simple("s + '\n\n'", "'### Instruction:\n' + c + '\n\n'", "'### Response:\n'", "")
    .replace("{% for", "{{ 'Below is an instruction that describes a task. Write a response that appropriately "
             "completes the request.\n\n' }}{% for")
    .replace("{% else %}{{  }}", "{% else %}{{ '### Response:\n' + c + eos_token + '\n\n' }}"),
}  # fmt: skip
WITH_DEFAULT = ("vicuna", "stablelm-alpha", "freewilly2", "falcon", "llama2-function-calling")
"""Those that have a system text of their own where a conversation has none; no model's own template does."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_styles_are_the_models_own_templates(name, kind, tmp_path):
    """As texts, and as ids; where the tokenizer begins every text with a token, also those of templates that do not."""
    from transformers import AutoTokenizer

    ours, reference = Tokenizer(folder_of(kind, tmp_path)), AutoTokenizer.from_pretrained(tmp_path)
    reference.bos_token = reference.bos_token or ""
    style, encoder = open_style(name, tmp_path, ours), Encoder(ours, PrepareArgs(prompt_style=name), 10**6)
    eos = ours.id_to_token(ours.eos_id)
    bos = ours.id_to_token(ours.bos_id) if ours.use_bos else ""
    template = TEMPLATES[name] if "bos_token" in TEMPLATES[name] else bos + TEMPLATES[name]
    own = STYLES[name].end if not ends_of(style) else None  # which this tokenizer lacks, and takes its eos for
    assert own is None or kind.startswith("llama")
    for turns in conversations():
        if name in WITH_DEFAULT and turns[0].role != "system":
            continue
        asks = turns[-1].role == "user"
        settings = {"chat_template": template, "add_generation_prompt": asks, "tokenize": False}
        want = reference.apply_chat_template(messages(turns), **settings)
        got = ("" if style.first_bos else bos) + text_of(style.exchanges(turns), eos)
        got = got.replace(eos, own) if own else got
        assert got == (want if asks else want.rstrip("\n")), turns
        if not asks:
            ((ids, labels),) = encoder.encode([Row(tuple(turns))], Counts())
            if own is None:
                assert ids == reference(want.rstrip("\n"), add_special_tokens=False)["input_ids"], turns
            ends = [i for i in labels if i in stop_ids(style, ours)]
            assert len(ends) == sum(t.role == "assistant" for t in turns) and labels[-1] == ends[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STYLES)
def test_the_chat_template_that_we_write_for_a_style_shows_what_it_shows(name, kind, tmp_path):
    from transformers import AutoTokenizer

    ours = Tokenizer(folder_of(kind, tmp_path))
    style = open_style(name, tmp_path, ours)
    (tmp_path / "chat_template.jinja").write_text(jinja_of(style), encoding="utf-8")
    reference = AutoTokenizer.from_pretrained(tmp_path)
    own = open_style("chat_template", tmp_path, ours)
    bos = "" if style.first_bos else style.own_bos
    for turns in conversations():
        asks = turns[-1].role == "user"
        got = reference.apply_chat_template(messages(turns), add_generation_prompt=asks, tokenize=False)
        assert got == bos + text_of(style.exchanges(turns), style.eos), turns
        if not asks and style.end in (None, style.eos) and not any("\n" in t.text for t in turns):
            again = [(e.answer, e.end) for e in own.exchanges(turns)]  # what training on it would teach
            assert again == [(e.answer, style.eos) for e in style.exchanges(turns)]


def test_a_style_names_what_it_has_no_place_for():
    chat = [Turn("user", "a"), Turn("assistant", "b")]
    call = Turn("assistant", "", extra={"tool_calls": [{"function": {"name": "f", "arguments": {}}}]})
    refused = {
        "tools": (chat, [{"type": "function"}]),
        "tool_calls": ([chat[0], call], ()),
        "a turn of role tool": ([*chat, Turn("tool", "1")], ()),
        "reasoning_content": ([chat[0], Turn("assistant", "b", extra={"reasoning_content": "hm"})], ()),
        "turn 3 is system's": ([*chat, Turn("system", "s"), *chat], ()),
        "turn 2 is user's": ([chat[0], *chat], ()),
        "turn 1 is assistant's": ([chat[1]], ()),
        "needs a user's turn": ([Turn("system", "s")], ()),
    }
    for name in STYLES:
        for what, (turns, tools) in refused.items():
            with pytest.raises(UserError, match=f"prompt style {name} .*{what}"):
                open_style(name).exchanges(turns, tools)
    empty = {"tool_calls": [], "reasoning_content": None, "name": "Ada"}
    taught = [Turn("user", "a", extra=empty), Turn("assistant", "b", taught=False), *chat]
    assert [e.taught for e in open_style("alpaca").exchanges(taught)] == [False, True]


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_instruction_leaves_no_empty_heading(empty):
    for name in STYLES:
        want, got = make_prompt(name, "How tall is it?"), make_prompt(name, empty, "How tall is it?")
        assert got == want and "### Input" not in got
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", empty, "c"), Turn("assistant", "d")]
    assert open_style("alpaca").exchanges(turns)[1].prompt == "\n\n### Instruction:\nc\n\n### Response:\n"
