"""What the model sees is what its own template shows, and the answers, all of them and nothing else, carry loss."""

import json
import shutil

import pytest
from conftest import SHARED, write_tokenizer

from lit_gpt.args import PrepareArgs
from lit_gpt.data.prepare.account import Counts
from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.tokens import Encoder
from lit_gpt.data.store import IGNORE
from lit_gpt.errors import UserError
from lit_gpt.prompts import STYLES, Turn, make_prompt, open_style
from lit_gpt.tokenizer import Tokenizer

ANSWER = "{% generation %}{{ m['content'] }}{{ eos_token }}{% endgeneration %}"
TEMPLATES = {  # as published, with marks of what the assistant says, which transformers makes its mask of
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}" + ANSWER
    + "{{ '\n' }}{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama-2": "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set s = messages[0]['content'] %}{% else %}{% set rest = messages %}{% set s = false %}{% endif %}"
    "{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if loop.first and s %}{{ '<<SYS>>\n' + s + '\n<</SYS>>\n\n' }}{% endif %}"
    "{{ m['content'].strip() + ' [/INST]' }}{% else %}"
    "{% generation %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}",
    "llama-3": "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] | trim }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] | trim }}{{ '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "zephyr": "{% for m in messages %}\n{% if m['role'] == 'assistant' %}\n{{ '<|assistant|>\n' }}" + ANSWER
    + "{{ '\n' }}{% else %}\n{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}\n{{ '<|assistant|>\n' }}{% endif %}",
}  # fmt: skip
TOKENIZERS = ["tiny", "tiny-prefix", "smollm2", "gpt-2", "gpt-neox-20b", "falcon", "mistral-v1"]
ODD = [
    "yes",
    " two  spaces ",
    "naïve 🦙 你好",
    "\nstarts with a line",
    "1.\n2.\n\n",
    "tabs\tand\x00zero",
    "'quoted' \"x\"",
    ".",
]


def conversations():
    """Some that go wrong easily, and real ones where they are."""
    made = [[Turn("user", ask), Turn("assistant", say)] for ask in ODD for say in ODD]
    made += [[Turn("system", "Be brief."), *made[i], *made[i + 1], *made[i + 9]] for i in range(0, 50, 7)]
    path = SHARED / "instruct" / "sharegpt_500.json"
    if path.is_file():
        from lit_gpt.data.prepare.sources import read_rows

        made += [row.turns for row in list(read_rows(path))[:60]]
    return made


def write_prefixing_tokenizer(folder):
    """As Llama's tokenizer.json: a space is put before a text and after each special token; other bytes as they are."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    write_tokenizer(folder)
    merges = [("▁", "t"), ("▁t", "h"), ("▁", "y"), ("y", "e"), ("\n", "s"), ("▁", "▁")]
    tokens = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz.\n"]
    tokens += [a + b for a, b in merges]
    ids = {t: i for i, t in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))


def folder_with(name, template, folder):
    """A tokenizer's folder with a chat template."""
    if name == "tiny":
        write_tokenizer(folder)
    elif name == "tiny-prefix":
        write_prefixing_tokenizer(folder)
    elif (source := SHARED / "tokenizers" / name).is_dir():
        for file in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
            if (source / file).is_file():
                shutil.copyfile(source / file, folder / file)
    else:
        pytest.skip(f"{source} is not here")
    (folder / "chat_template.jinja").write_text(template)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_and_targets_are_those_of_transformers_chat_templates(tmp_path, name, template):
    from transformers import AutoTokenizer

    folder_with(name, TEMPLATES[template], tmp_path)
    reference, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer(tmp_path)
    ours.use_bos = False  # a template writes it where it wants it, and transformers adds none
    encoder = Encoder(ours, PrepareArgs(prompt_style="chat_template"), 10**6)
    n_equal = 0
    for turns in conversations():
        if name == "mistral-v1" and any("  " in t.text or " \n" in t.text for t in turns):
            continue  # transformers 5 cuts runs of spaces otherwise than sentencepiece (lit_gpt/tokenizer/backends.py)
        messages = [{"role": t.role, "content": t.text} for t in turns]
        whole = reference.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        counts = Counts()
        ((ids, labels),) = encoder.encode([Row(tuple(turns))], counts)
        ends = [i for i, label in enumerate(labels) if label == ours.eos_id]
        assert len(ends) == sum(t.role == "assistant" for t in turns) and ends[-1] == len(labels) - 1
        asked = reference.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
        if len(turns) == 2:  # what generation begins with, token by token
            assert ids[: labels.count(IGNORE)] == ours.encode(asked)
        wanted, mask = whole["input_ids"][: len(ids)], whole["assistant_masks"]
        assert counts.tokenized_apart == (ids != wanted), turns
        if not counts.tokenized_apart:
            n_equal += 1
            assert [int(label != IGNORE) for label in labels] == mask[: len(ids)] and not any(mask[len(ids) :]), turns
    # GPT-2's way of splitting makes one token of two line breaks at the end of a text, and two before a word
    assert n_equal > 40 or (template == "llama-3" and name not in ("tiny", "tiny-prefix", "mistral-v1"))


FIRST_TURNS = {  # what Lit-GPT's users have trained with; a space that belongs to the answer is left to it
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\nQ\n\n### Response:\n",
    "chatml": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
    "plain": "Q",
    "stablelm-alpha": "<|SYSTEM|># StableLM Tuned (Alpha version)\n...harm a human.<|USER|>Q<|ASSISTANT|>",
    "stablelm-zephyr": "<|user|>\nQ<|endoftext|>\n<|assistant|>\n",
    "stablecode": "###Instruction\nQ###Response\n",
    "togethercomputer-chat": "<human>: Q\n<bot>:",
    "togethercomputer-instruct": "Q: Q\nA:",
    "falcon": "Do not prefix your replies with 'Bot: '\nUser: Q\n",
    "vicuna": "A chat between a curious user and...questions. USER: Q ASSISTANT:",
    "llama2": "[INST] Q [/INST]",
    "llama2-function-calling": '<FUNCTIONS>{"function": "search_bing",...}</FUNCTIONS>\n\n[INST]<<SYS>>\nYou are...'
    "functions\n<</SYS>>\n\nQ[/INST]\n\n",
    "freewilly2": "### System:\nThis is a system prompt, please behave and help the user.\n\n### User:\nQ\n\n"
    "### Assistant:\n",
    "platypus": "### Instruction:\n\nQ\n\n### Response:\n",
    "nous-research": "### Instruction:\nQ\n\n### Response:\n",
    "codellama": "[INST] Q [/INST]",
    "phi-1": "Q\n\nAnswer:",
    "phi-2": "Instruct: Q\nOutput:",
    "tinyllama": "<|user|>\nQ</s>\n<|assistant|>\n",
    "gemma": "<start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\n",
}


@pytest.mark.parametrize("name", STYLES)
def test_first_turns_are_as_published_and_later_ones_lose_nothing(name):
    prompt, parts = make_prompt(name, "Q"), FIRST_TURNS[name].split("...")
    assert prompt.startswith(parts[0]) and prompt.endswith(parts[-1]) and all(part in prompt for part in parts)
    assert len(parts) > 1 or prompt == parts[0]
    said = ["S {prompt}", "Q1 {system}", "A1", "Q2 {input}", "A2"]
    turns = [Turn("system", said[0]), Turn("user", said[1], "C1"), Turn("assistant", said[2])]
    turns += [Turn("user", said[3], "C2 {prompt}"), Turn("assistant", said[4])]
    text = "".join(e.prompt + "|" + e.answer + "|" for e in open_style(name).exchanges(turns))
    for piece in (*said, "C1", "C2 {prompt}"):
        assert text.count(piece) == 1, (piece, text)
    assert text.index(said[0]) < text.index(said[1]) < text.index("C1") < text.index(said[2]) < text.index(said[3])


def test_alpacas_later_questions_have_their_input_where_the_first_one_has_it():
    turns = [Turn("user", "a", "x"), Turn("assistant", "b"), Turn("user", "c", "y"), Turn("assistant", "d")]
    first, second = open_style("alpaca").exchanges(turns)
    assert first.prompt.endswith("\n\n### Instruction:\na\n\n### Input:\nx\n\n### Response:\n")
    assert second.prompt == "\n\n### Instruction:\nc\n\n### Input:\ny\n\n### Response:\n"


def test_the_last_turn_only_and_prompts_too(checkpoint):
    tokenizer = Tokenizer(checkpoint)
    turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"), Turn("user", "e"))

    def labelled(**flags):
        counts = Counts()
        ((ids, labels),) = Encoder(tokenizer, PrepareArgs(prompt_style="plain", **flags), 50).encode(
            [Row(turns)], counts
        )
        assert counts.cut == {"after the last answer": 1}
        return ids, tokenizer.decode([i for i in labels if i != IGNORE]), labels

    end = tokenizer.eos_id
    ids, text, labels = labelled()
    assert text == "bd" and labels.count(end) == 2 and tokenizer.decode(ids) == "ab\n\ncd"
    ids, text, labels = labelled(last_turn_only=True)
    assert text == "d" and labels.count(end) == 1
    ids, text, labels = labelled(mask_inputs=False)
    assert ids == labels
    with pytest.raises(UserError, match="pass one of them"):
        PrepareArgs(mask_inputs=False, last_turn_only=True)


@pytest.mark.parametrize(
    "template, message",
    [
        (None, "has no chat template"),
        ("{% if %}", "no Jinja program"),
        ("{{ raise_exception('only one\nturn') }}", "refuses a conversation: only one turn"),
        ("{{ ''.__class__.__mro__ }}", "refuses a conversation"),
        ("{{ 1 // 0 }}", "refuses a conversation"),
        ("{% for m in messages %}{{ loop.revindex }}{{ m.content }}{% endfor %}", "does not show the answer"),
    ],
)
def test_a_chat_template_that_cannot_serve_is_named(tmp_path, template, message):
    write_tokenizer(tmp_path)
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=message) as e:
        turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
        open_style("chat_template", tmp_path).exchanges(turns)
    assert "\n" not in str(e.value)


FORGETS = (  # as Qwen 3: what was thought is shown of the last answer only, and an empty thought if there was none
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% set said = m.content.split('</think>\n')[-1] %}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>' }}"
    "{{ m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content }}{{ '</think>\n' }}{% endif %}"
    "{{ said + eos_token + '\n' }}{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)


@pytest.mark.parametrize("thought", ["", "<think>hm</think>\n"])
def test_where_a_template_shows_an_answer_otherwise_later_the_last_one_is_taught_after_what_generation_sees(
    tmp_path, thought
):
    from transformers import AutoTokenizer

    folder_with("tiny", FORGETS, tmp_path)
    turns = [Turn(role, text) for role, text in zip(("user", "assistant") * 3, "abcdef", strict=True)]
    turns = [Turn(t.role, thought + t.text) if t.role == "assistant" else t for t in turns]
    reference, tokenizer = AutoTokenizer.from_pretrained(tmp_path), Tokenizer(tmp_path)
    messages = [{"role": t.role, "content": t.text} for t in turns]
    seen = reference.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
    assert seen.count("<think>") == 0 and "b</s>" in seen and "d</s>" in seen
    wanted = (thought or "<think></think>\n") + "f"
    for flags, n_counted in (({}, 1), ({"last_turn_only": True}, 0)):
        counts = Counts()
        encoder = Encoder(tokenizer, PrepareArgs(prompt_style="chat_template", **flags), 10**6)
        ((ids, labels),) = encoder.encode([Row(tuple(turns))], counts)
        assert ids[: labels.count(IGNORE)] == tokenizer.encode(seen)
        assert ids == tokenizer.encode(seen + wanted, eos=True) and counts.last_only == n_counted
        ((_, labels),) = encoder.encode([Row(tuple(turns[:2]))], counts)
        assert tokenizer.decode([i for i in labels if i != IGNORE]) == (thought or "<think></think>\n") + "b"
        assert counts.last_only == n_counted and counts.record()["last_answer_only"] == n_counted
    asked = open_style("chat_template", tmp_path).exchanges(turns[:-1])
    assert [(e.prompt, e.answer) for e in asked] == [(seen, None)]


def test_a_row_that_the_template_refuses_is_named_or_counted(tmp_path):
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    folder_with("tiny", refuses + TEMPLATES["chatml"], tmp_path)
    chat = (Turn("user", "a"), Turn("assistant", "b"))
    rows = [Row(chat, "x.jsonl", "line 1"), Row((Turn("system", "s"), *chat), "x.jsonl", "line 2")]
    tokenizer, counts = Tokenizer(tmp_path), Counts()
    with pytest.raises(UserError, match=r"x.jsonl, line 2: .*System role not supported; --bad_rows drop"):
        Encoder(tokenizer, PrepareArgs("chat_template"), 100).encode(rows, counts)
    counts = Counts()
    assert len(Encoder(tokenizer, PrepareArgs("chat_template", bad_rows="drop"), 100).encode(rows, counts)) == 1
    assert (counts.read, counts.kept, counts.dropped) == (2, 1, {"refused by the chat template": 1})


def test_an_answer_that_holds_the_token_that_ends_it_is_whole(tmp_path):
    folder_with("tiny", TEMPLATES["zephyr"], tmp_path)
    turns = [Turn("user", "a"), Turn("assistant", "say </s> to end"), Turn("user", "c"), Turn("assistant", "d")]
    first, second = open_style("chat_template", tmp_path).exchanges(turns)
    assert (first.answer, first.end, second.answer) == ("say </s> to end", "</s>", "d")
    assert second.prompt == "\n<|user|>\nc</s>\n<|assistant|>\n"


def test_a_template_in_the_tokenizers_settings_is_found_and_unknown_styles_are_named(tmp_path):
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages[0].content }}:"}]
    for template in ("{{ messages[0].content }}:", named):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
        assert make_prompt("chat_template", "hi", "there", tmp_path) == "hi\n\nthere:"
    with pytest.raises(UserError, match=r"'alpacca'.*alpaca, chatml.*chat_template"):
        make_prompt("alpacca", "hi")
    with pytest.raises(UserError, match="checkpoint's own"):
        make_prompt("chat_template", "hi")
