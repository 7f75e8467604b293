"""A model is trained on what its template makes of a row, in every shape that templates have, and is taught where to
end. What a template says comes from transformers."""

import json
import shutil
from functools import cache

import numpy as np
import pytest
from chat_shapes import CHATML, SHAPES, Shape
from conftest import SHARED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_gpt.args import PrepareArgs
from lit_gpt.data import store
from lit_gpt.data.prepare.account import Counts
from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.run import Files, prepare
from lit_gpt.data.prepare.tokens import Encoder
from lit_gpt.data.store import IGNORE
from lit_gpt.errors import UserError
from lit_gpt.prompts import Turn, make_prompt, open_style, with_kwargs
from lit_gpt.prompts.messages import message
from lit_gpt.tokenizer import Tokenizer


@cache
def opened(name, place):
    """(tokenizer of transformers, our encoder) of a shape."""
    return of_folder(SHAPES[name].write(place / name.replace(" ", "_")))


def of_folder(folder, **flags):
    from transformers import AutoTokenizer

    args = PrepareArgs("chat_template", **flags)
    return AutoTokenizer.from_pretrained(folder), Encoder(Tokenizer(folder), args, 10**6)


def of_template(template, folder, special=("</s>", "<|im_start|>", "<|im_end|>"), eos="<|im_end|>", **flags):
    return of_folder(Shape(template, special, eos).write(folder), **flags)


def messages_of(turns):
    return [{"role": t.role, "content": t.text, **t.extra} for t in turns]


def sample(encoder, turns, tools=()):
    """(ids, labels) of the one sample of a row, and the account."""
    counts = Counts()
    (pair,) = encoder.encode([Row(tuple(turns), tools=tuple(tools))], counts)
    return *pair, counts


def parts_taught(ids, labels):
    """Runs of ids that carry loss."""
    runs, before = [], IGNORE
    for i, label in zip(ids, labels, strict=True):
        if label != IGNORE:
            runs = [*runs, [i]] if before == IGNORE else [*runs[:-1], [*runs[-1], i]]
        before = label
    return runs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


TEXTS = st.sampled_from(["yes", "a b", "<b>bold</b>", "[x]", "1.\n2.", "<", "é 你好", "say it", "{% x %}", "I'm <|x|>"])
ROWS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(system=st.none() | TEXTS, pairs=ROWS)
def test_a_template_of_every_shape_is_trained_as_transformers_asks_and_ends_once(name, place, system, pairs):
    shape = SHAPES[name]
    reference, encoder = opened(name, place)
    turns = [turn for q, a in pairs for turn in (Turn("user", q), Turn("assistant", a))]
    if system and shape.system:
        turns = [Turn("system", system), *turns]
    ids, labels, counts = sample(encoder, turns)
    messages = messages_of(turns)
    end = reference.convert_tokens_to_ids(shape.end or shape.eos)
    asked = reference.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    taught = parts_taught(ids, labels)
    n_prompt = len(ids) - len(taught[-1])
    has_end = name not in ("no end", "end as text")  # where our own end stands, that no template shows
    assert ids[:n_prompt] == asked or (not has_end and [i for i in ids[:n_prompt] if i != end] == asked)
    assert turns[-1].text in reference.decode(taught[-1])
    assert encoder.end_ids == {end} and ids[-1] == end
    assert all(run[-1] == end and run.count(end) == 1 for run in taught)
    keeps = shape.history or (name == "mistral 0.3" and turns[0].role != "system")
    n_taught = len(pairs) if keeps else 1
    assert (len(taught), counts.taught, counts.answers) == (n_taught, n_taught, len(pairs))
    assert counts.last_only == (n_taught < len(pairs)) and not counts.left_out
    if shape.whole:
        whole = reference.apply_chat_template(messages)["input_ids"]
        late = name in ("apertus", "glm 4")  # write no end after the last answer
        assert (ids[:-1] == whole) if late else (ids == whole[: len(ids)])
        if not late:
            assert not set(reference.decode(whole[len(ids) :])) - set("\n") or name == "phi 3"


def test_what_ends_a_turn_in_the_template_is_the_only_end_and_generation_knows_it(tmp_path):
    reference, encoder = of_template(CHATML, tmp_path, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|endoftext|>")
    turns = [Turn(role, text) for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    ids, labels, _ = sample(encoder, turns)
    end, eos = reference.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert eos not in ids and [run[-1] for run in parts_taught(ids, labels)] == [end, end]
    assert ids == reference.apply_chat_template(messages_of(turns))["input_ids"][:-1]  # but for its last line break
    assert encoder.end_ids == {end}


MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m.content }}{{ END }}{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)
CLOSED = "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}"
MARKS = {  # the end marked, with the line break after it, not marked, in two parts, only in answers that say so
    "end": MARKED.replace("{{ END }}", "{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}" + CLOSED),
    "line break": MARKED.replace("{{ END }}", "{{ '<|im_end|>\n' }}{% endgeneration %}" + CLOSED),
    "no end": MARKED.replace("{{ END }}", "{% endgeneration %}{{ '<|im_end|>\n' }}" + CLOSED),
    "two parts": MARKED.replace(
        "{{ m.content }}{{ END }}",
        "{% endgeneration %}{{ ' so ' }}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
        + CLOSED,
    ),
    "header": MARKED.replace("{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}",
        "{{ '<|im_start|>' + m.role + '\n' if m.role == 'user' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ '<|im_start|>assistant\n' }}").replace(
        "{{ END }}", "{{ '<|im_end|>\n' }}{% endgeneration %}" + CLOSED),
    "last only": CHATML.replace("m.content", "('' if m.role == 'assistant' and loop.last else m.content)").replace(
        "+ '<|im_end|>\n' }}", "}}{% if m.role == 'assistant' and loop.last %}"
        "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
        "{% else %}{{ '<|im_end|>\n' }}{% endif %}"),
}  # fmt: skip


THOUGHTS = [(None, None), ("hm", None), ("hm", "oh"), (None, "oh")]


@pytest.mark.parametrize("marks, thoughts", [(m, t) for m in MARKS for t in THOUGHTS if m != "last only" or not any(t)])
def test_what_a_template_marks_is_taught_and_nothing_else_as_in_the_mask_of_transformers(marks, thoughts, tmp_path):
    reference, encoder = of_template(MARKS[marks], tmp_path)
    turns = [Turn("user", "a"), Turn("assistant", "bee"), Turn("user", "c"), Turn("assistant", "dee")]
    for i, thought in zip((1, 3), thoughts, strict=True):
        extra = {} if thought is None else {"reasoning_content": thought}
        turns[i] = Turn("assistant", turns[i].text, extra=extra)
    whole = reference.apply_chat_template(messages_of(turns), return_dict=True, return_assistant_tokens_mask=True)
    ids, labels, counts = sample(encoder, turns)
    mask, n = whole["assistant_masks"], len(ids)
    assert ids == whole["input_ids"][:n] and [int(label != IGNORE) for label in labels] == mask[:n]
    assert not reference.decode([i for i, m in zip(whole["input_ids"][n:], mask[n:], strict=True) if m]).strip()
    n_marked = 1 if marks == "last only" else 2
    assert (counts.answers, counts.taught, counts.last_only) == (2, n_marked, int(n_marked == 1))
    assert encoder.end_ids == (set() if marks == "no end" else {encoder.tokenizer.eos_id})
    _, last = of_template(MARKS[marks], tmp_path, last_turn_only=True)
    since = len(reference.apply_chat_template(messages_of(turns[:-1]))["input_ids"])
    ids, labels, counts = sample(last, turns)
    assert [int(label != IGNORE) for label in labels] == [0] * since + mask[since:n] and counts.taught == 1


TOOLS = [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"id": "call_0001", "type": "function", "function": {"name": "lookup", "arguments": {"q": "tower <1>"}}}


@pytest.mark.parametrize("calls", [(), (CALL,)])
def test_a_token_within_a_marked_answer_is_no_end_and_one_that_closes_its_calls_is(calls, tmp_path):
    template = CHATML.replace(
        "+ m.content + '<|im_end|>\n' }}",
        "}}{% if m.role == 'assistant' %}{% generation %}{{ '<think>hm</think>' }}{% endgeneration %}{{ '\n' }}"
        "{% generation %}{{ m.content + ('<|call|>' if m.tool_calls else '<|im_end|>') }}{% endgeneration %}{{ '\n' }}"
        "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}",
    )
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|call|>")
    reference, encoder = of_template(template.replace("'<|call|>'", "'lookup<|call|>'"), tmp_path, special, special[0])
    turns = [Turn("user", "a"), Turn("assistant", "b", extra={"tool_calls": list(calls)})]
    ids, labels, counts = sample(encoder, turns)
    whole = reference.apply_chat_template(messages_of(turns), return_dict=True, return_assistant_tokens_mask=True)
    assert (
        ids == whole["input_ids"][:-1] and [int(label != IGNORE) for label in labels] == whole["assistant_masks"][:-1]
    )
    assert encoder.end_ids == {reference.convert_tokens_to_ids("<|call|>" if calls else "<|im_end|>")}
    assert (counts.answers, counts.taught) == (1, 1)


def test_a_row_of_which_nothing_is_marked_is_dropped_and_named(tmp_path):
    mark = "m.content }}{% if m.learn %}{% generation %}{{ '<|im_end|>' }}{% endgeneration %}{% endif %}{{ '\n' }}"
    template = CHATML.replace("m.content + '<|im_end|>\n' }}", mark)
    _, encoder = of_template(template, tmp_path)
    counts = Counts()
    assert encoder.encode([Row((Turn("user", "a"), Turn("assistant", "b")))], counts) == []
    assert counts.dropped == {"no answer that is taught": 1}


CALLING = (  # as Qwen's: tools in a system text of their own, calls after the text, results as a user's
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\n' }}"
    "{{ m.content if m.role != 'tool' else '<result>' + m.content + '</result>' }}"
    "{% for c in m.tool_calls or [] %}{{ '\n<call>' + c.function | tojson(sort_keys=True) + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)


def calling(text="Let me look.", *, taught=True, calls=(CALL,)):
    return [
        Turn("user", "How tall?"),
        Turn("assistant", text, taught=taught, extra={"tool_calls": list(calls)}),
        Turn("tool", "29 m", extra={"tool_call_id": "call_0001", "name": "lookup"}),
        Turn("assistant", "It is 29 m tall."),
    ]


@pytest.mark.parametrize("text", ["Let me look.", ""])
@pytest.mark.parametrize("n_turns", [2, 4])
def test_calls_are_taught_where_the_template_shows_them_and_results_are_not(text, n_turns, tmp_path):
    reference, encoder = of_template(CALLING, tmp_path)
    turns = calling(text)[:n_turns]
    ids, labels, counts = sample(encoder, turns, TOOLS)
    whole = reference.apply_chat_template(messages_of(turns), tools=TOOLS)["input_ids"]
    assert ids == whole[:-1] and counts.taught == n_turns // 2
    wanted = [text + '\n<call>{"arguments": {"q": "tower <1>"}, "name": "lookup"}</call><|im_end|>']
    wanted += ["It is 29 m tall.<|im_end|>"] * (n_turns == 4)
    assert [reference.decode(run) for run in parts_taught(ids, labels)] == wanted
    asked = reference.apply_chat_template(messages_of(turns[:-1]), tools=TOOLS, add_generation_prompt=True)
    assert ids[: len(asked["input_ids"])] == asked["input_ids"]
    asks = "".join(e.prompt + (e.answer or "") + (e.end or "") for e in encoder.style.exchanges(turns[:-1], TOOLS))
    assert asks == reference.decode(asked["input_ids"])


LATE = (  # as Apertus: calls and their results are in one turn of the assistant, which only the next turn ends
    "{% for m in messages %}{% set before = messages[loop.index0 - 1].role if loop.index0 else '' %}"
    "{% if m.role == 'user' %}{{ '<|end|>' if before == 'assistant' }}{{ '<|user|>' + m.content }}{% endif %}"
    "{% if m.role == 'tool' %}{{ '[' + m.content + ']' }}{% endif %}{% if m.role == 'assistant' %}"
    "{{ '<|assistant|>' if before == 'user' }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<|calls|>' + c.function.name + '<|called|>' }}{% endfor %}{% endif %}"
    "{% endfor %}{{ '<|assistant|>' if add_generation_prompt and messages[-1].role == 'user' }}"
)


@pytest.mark.parametrize("n_turns", [2, 4])
def test_calls_that_no_other_turn_follows_end_as_those_before_results_do(n_turns, tmp_path):
    special = ("<|user|>", "<|assistant|>", "<|calls|>", "<|called|>", "<|end|>")
    reference, encoder = of_template(LATE, tmp_path, special, "<|end|>")
    turns = calling("")[:n_turns]
    ids, labels, _ = sample(encoder, turns)
    whole = reference.apply_chat_template(messages_of(turns))["input_ids"]
    end, called = reference.convert_tokens_to_ids(["<|end|>", "<|called|>"])
    assert ids == (whole if n_turns == 2 else [*whole, end])
    assert [run[-1] for run in parts_taught(ids, labels)] == [called, end][: n_turns // 2]
    assert encoder.end_ids == {called, end} & set(ids)


def test_an_answer_after_a_result_that_is_shown_otherwise_later_is_found(tmp_path):
    """As Hermes 2 Pro: a line break after the last result goes once more turns follow."""
    template = CALLING.replace("'<result>' + m.content + '</result>'", "m.content + ('' if loop.last else '\n')")
    reference, encoder = of_template(template, tmp_path)
    ids, labels, counts = sample(encoder, calling(), TOOLS)
    asked = reference.apply_chat_template(messages_of(calling()[:-1]), tools=TOOLS, add_generation_prompt=True)
    (run,) = parts_taught(ids, labels)[-1:]
    assert ids == asked["input_ids"] + run and reference.decode(run) == "It is 29 m tall.<|im_end|>"
    assert counts.taught == 2


HIDES = {
    "tools;": CALLING.replace("{% if tools %}", "{% if false %}"),
    "tool_calls, tools;": CALLING.replace("m.tool_calls or []", "[]").replace("{% if tools %}", "{% if false %}"),
    "tool_calls;": CALLING.replace("m.tool_calls or []", "[]"),
    r"the tool_calls of turn 2 \(second\)": CALLING.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]"),
    "turns of the role tool": CALLING.replace("'<result>' + m.content + '</result>'", "'done'"),
    "the reasoning_content of turn 2": CALLING,
}


@pytest.mark.parametrize("what", HIDES)
def test_what_a_template_does_not_show_is_refused_by_name(what, tmp_path):
    _, encoder = of_template(HIDES[what], tmp_path)
    second = {"type": "function", "function": {"name": "second", "arguments": {}}}
    turns = calling(calls=(CALL, second))
    if what == "tools;":
        turns = [Turn("user", "a"), Turn("assistant", "b")]
    if "reasoning" in what:
        turns = [Turn("user", "a"), Turn("assistant", "b", extra={"reasoning_content": "hm"})]
    row = Row(tuple(turns), tools=tuple(TOOLS), file="x.jsonl", location="line 3")
    with pytest.raises(UserError, match=rf"x.jsonl, line 3: the chat template of .* does not show {what}"):
        encoder.encode([row], Counts())
    _, encoder = of_template(HIDES[what], tmp_path, bad_rows="drop")
    counts = Counts()
    assert encoder.encode([row], counts) == [] and counts.dropped == {"refused by the chat template": 1}


def test_tools_that_are_not_shown_beside_calls_that_are_are_counted(tmp_path):
    _, encoder = of_template(HIDES["tools;"], tmp_path)
    *_, counts = sample(encoder, calling(), TOOLS)
    assert counts.left_out == {"tools": 1} and counts.taught == 2
    assert counts.record()["not_shown"] == {"tools": 1}


@pytest.mark.parametrize("needs_null", [False, True])
def test_calls_reach_a_template_that_takes_arguments_as_text_or_content_as_null_only(needs_null, tmp_path):
    """As DeepSeek R1, whose calls transformers 5 loses: it leaves a null content out."""
    template = CALLING.replace("c.function | tojson(sort_keys=True)", "c.function.name + '\n' + c.function.arguments")
    if needs_null:
        template = template.replace("m.tool_calls or []", "(m.tool_calls if m.content is none else [])")
        template = template.replace("m.content if m.role", "m.content or '' if m.role")
    reference, encoder = of_template(template, tmp_path)
    ids, labels, _ = sample(encoder, calling("")[:2], TOOLS)
    called = '\n<call>lookup\n{"q": "tower <1>"}</call><|im_end|>'
    assert [reference.decode(run) for run in parts_taught(ids, labels)] == [called]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_go_to_the_template_under_the_names_that_transformers_gives_them(key, tmp_path):
    template = MARKS["end"].replace("{% generation %}", "").replace("{% endgeneration %}", "")
    template = template.replace("m.content }}", "m.content ~ (m.thinking or '') }}", 1)
    reference, encoder = of_template(template, tmp_path)
    turns = [Turn("user", "a"), Turn("assistant", "b", extra={key: "hm b"})]
    ids, labels, _ = sample(encoder, turns)
    assert ids == reference.apply_chat_template(messages_of(turns))["input_ids"][:-1]
    assert reference.decode(parts_taught(ids, labels)[0]) == "<think>hm b</think>bhm b<|im_end|>"


def test_an_answer_that_is_not_taught_has_no_loss_nor_has_its_end(tmp_path):
    reference, encoder = of_template(CHATML, tmp_path)
    turns = [Turn("user", "a"), Turn("assistant", "bad", taught=False), Turn("user", "c"), Turn("assistant", "good")]
    ids, labels, counts = sample(encoder, turns)
    assert ids == reference.apply_chat_template(messages_of(turns))["input_ids"][:-1]
    assert [reference.decode(run) for run in parts_taught(ids, labels)] == ["good<|im_end|>"]
    assert (counts.answers, counts.taught, counts.last_only) == (1, 1, 0)
    _, everything = of_template(CHATML, tmp_path, mask_inputs=False)
    _, labels, _ = sample(everything, turns)
    assert reference.decode([i for i, label in zip(ids, labels, strict=True) if label == IGNORE]) == "bad<|im_end|>"
    swapped = [turns[0], turns[3], turns[2], turns[1]]
    ids, labels, counts = sample(encoder, swapped)
    assert counts.cut == {"after the last answer that is taught": 1} and reference.decode(ids).endswith(
        "good<|im_end|>"
    )
    counts = Counts()
    assert encoder.encode([Row(tuple(turns[:2]))], counts) == [] and counts.dropped == {"no answer that is taught": 1}


def test_a_thought_that_the_prompt_begins_is_gone_on_with(place):
    reference, encoder = opened("deepseek r1", place)
    turns = [Turn("user", "a"), Turn("assistant", "<think>\nhm, b\n</think>\n\nb")]
    ids, labels, counts = sample(encoder, turns)
    asked = reference.apply_chat_template(messages_of(turns[:-1]), add_generation_prompt=True, tokenize=False)
    assert reference.decode(ids) == asked + "hm, b\n</think>\n\nb<|end|>" and asked.endswith("<think>\n")
    assert reference.decode(parts_taught(ids, labels)[0]) == "hm, b\n</think>\n\nb<|end|>" and not counts.left_out


def test_a_thought_where_the_prompt_has_closed_it_is_refused_by_name(tmp_path):
    folder = SHAPES["qwen 3"].write(tmp_path)
    style = open_style(with_kwargs("chat_template", {"enable_thinking": False}), folder)
    plain = [Turn("user", "a"), Turn("assistant", "b")]
    (exchange,) = style.exchanges(plain)
    assert exchange.prompt.endswith("<think>\n\n</think>\n\n") and exchange.answer == "b"
    with pytest.raises(UserError, match=r"a thought has ended.*--template_kwargs"):
        style.exchanges([plain[0], Turn("assistant", "b", extra={"reasoning_content": "hm"})])


def test_texts_that_a_template_leaves_out_are_counted(tmp_path):
    template = CHATML.replace("for m in messages", "for m in messages if m.role != 'system'")
    template = template.replace("m.content +", "m.content.split('</think>')[-1] +")
    _, encoder = of_template(template, tmp_path)
    turns = [Turn("system", "Be brief."), Turn("user", "a"), Turn("assistant", "<think>hm</think>b")]
    *_, counts = sample(encoder, turns)
    assert counts.left_out == {"system text": 1, "answer": 1}
    assert counts.notes()[-1] == "in 1 rows the chat template does not show all of the answer"


def test_a_refusal_of_a_row_that_was_cut_has_its_place_and_can_be_dropped(tmp_path):
    template = "{% if messages[0].content | length < 40 %}{{ raise_exception('too short') }}{% endif %}" + CHATML
    row = Row((Turn("user", "long " * 20), Turn("assistant", "b")), file="x.jsonl", location="line 7")
    folder = Shape(template, ("</s>", "<|im_start|>", "<|im_end|>"), "<|im_end|>").write(tmp_path)
    for bad_rows in ("error", "drop"):
        args = PrepareArgs("chat_template", truncation="cut_prompt", bad_rows=bad_rows)
        encoder, counts = Encoder(Tokenizer(folder), args, 60), Counts()
        if bad_rows == "error":
            with pytest.raises(UserError, match=r"x.jsonl, line 7: .*too short; --bad_rows drop"):
                encoder.encode([row], counts)
        else:
            assert encoder.encode([row], counts) == []
            assert counts.dropped == {"refused by the chat template": 1} and counts.dropped.total() == counts.read


def test_options_and_the_rest_of_what_transformers_gives_reach_the_template(tmp_path):
    template = (
        "{{ [tools is none, documents is none, enable_thinking, bos_token, eos_token] | tojson }}"
        "{{ {'b': '<é>', 'a': 1} | tojson(ensure_ascii=True, sort_keys=True, separators=(',', ':'), indent=1) }}"
        "{{ strftime_now('%Y') }}{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{{ m | tojson }}{% endfor %}"
    )
    folder = Shape(template, ("<s>", "</s>"), "</s>", bos="<s>").write(tmp_path)
    reference, _ = of_folder(folder)
    style = open_style(with_kwargs("chat_template", {"enable_thinking": False}), folder)
    turns = [Turn("user", "<hi> é", extra={"name": "Ann", "content_type": None}), Turn("user", "b")]
    wanted = reference.apply_chat_template(messages_of(turns), tokenize=False, enable_thinking=False)
    assert style.render(turns, ask=False) == wanted and '"name": "Ann"' in wanted


def test_a_template_for_tools_is_taken_with_tools(tmp_path):
    folder = Shape(CHATML, ("</s>", "<|im_start|>", "<|im_end|>"), "<|im_end|>").write(tmp_path)
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": CALLING}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": named}))
    reference, encoder = of_folder(folder)
    for tools in ((), TOOLS):
        turns = calling() if tools else [Turn("user", "a"), Turn("assistant", "b")]
        ids, *_ = sample(encoder, turns, tools)
        assert ids == reference.apply_chat_template(messages_of(turns), tools=tools or None)["input_ids"][:-1]


def test_a_published_tokenizer_is_trained_on_what_transformers_renders():
    folder = SHARED / "tokenizers" / "smollm2"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    reference, encoder = of_folder(folder)
    turns = [
        Turn(role, text) for role, text in zip(("user", "assistant") * 2, ("Hi", "Ho", "Hi again", "No"), strict=True)
    ]
    for said in (turns, [Turn("system", "Be brief."), *turns]):
        ids, _, counts = sample(encoder, said)
        whole = reference.apply_chat_template(messages_of(said))["input_ids"]
        assert ids == whole[: len(ids)] and reference.decode(whole[len(ids) :]) == "\n" and counts.taught == 2


def checkpoint_with(folder, checkpoint, shape):
    """A tiny converted checkpoint with the tokenizer and template of a shape."""
    shutil.copytree(checkpoint, folder)
    shape.write(folder)
    return folder


def test_a_prepared_set_and_its_run_say_how_they_end_and_what_the_template_was_given(checkpoint, tmp_path, capsys):
    asks = '{"messages": [{"role": "user", "content": "%d?"}, {"role": "assistant", "content": "No %d."}]}\n'
    (tmp_path / "rows.jsonl").write_text("".join(asks % (i, i * i) for i in range(20)))
    template = CHATML + "{{ '/' if add_generation_prompt and quick }}"
    shape = Shape(template, SHAPES["chatml, base"].special, "<|endoftext|>")
    place = checkpoint_with(tmp_path / "model", checkpoint, shape)
    args = PrepareArgs("chat_template", test_split_fraction=0.2, template_kwargs={"quick": True})
    prepare(Files((tmp_path / "rows.jsonl",)), None, tmp_path / "data", place, args)
    meta = store.load(tmp_path / "data")[2]
    tokenizer = Tokenizer(place)
    end = tokenizer.token_to_id("<|im_end|>")
    assert meta["end_ids"] == [end] != [tokenizer.eos_id] and "of sequence ends each of" in capsys.readouterr().out
    assert meta["prompt_style"] == 'chat_template {"quick": true}'
    asked = make_prompt(meta["prompt_style"], "1?", checkpoint_dir=place)  # as a run asks, which keeps the style's name
    assert asked.endswith("1?<|im_end|>\n<|im_start|>assistant\n/")
    train = store.load(tmp_path / "data")[0]
    assert tokenizer.eos_id not in train.ids and (np.asarray(train.labels) == end).sum() == len(train)
    for style, said in (
        ("chat_template []", "followed by a JSON object"),
        ("chat_template {", "followed by a JSON object"),
    ):
        with pytest.raises(UserError, match=said):
            open_style(style, place)
    with pytest.raises(UserError, match="alpaca takes none"):
        Encoder(tokenizer, PrepareArgs("alpaca", template_kwargs={"quick": True}), 9)


def test_a_template_that_marks_no_end_is_prepared_with_a_warning(checkpoint, tmp_path, capsys):
    rows = '{"messages": [{"role": "user", "content": "%d?"}, {"role": "assistant", "content": "No %d."}]}\n'
    (tmp_path / "rows.jsonl").write_text("".join(rows % (i, i * i) for i in range(20)))
    shape = Shape(MARKS["no end"], ("</s>", "<|im_start|>", "<|im_end|>"), "<|im_end|>")
    place = checkpoint_with(tmp_path / "model", checkpoint, shape)
    args = PrepareArgs("chat_template", test_split_fraction=0.2)
    prepare(Files((tmp_path / "rows.jsonl",)), None, tmp_path / "data", place, args)
    assert store.load(tmp_path / "data")[2]["end_ids"] == []
    assert "marks no token that ends an answer" in capsys.readouterr().out


def test_an_input_without_an_instruction_is_all_that_is_asked(tmp_path):
    """Alpaca's rows may have their text in `input`; a line of nothing before it would be another prompt."""
    assert message(Turn("user", "", "the text"))["content"] == "the text"
    assert message(Turn("user", "do", "the text"))["content"] == "do\n\nthe text"
