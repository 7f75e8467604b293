"""What a model is asked, to the byte, and what it answers are as with lm-eval's own `hf` model in any kind of task."""

import shutil
from dataclasses import replace

import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval_reference import assert_same_answers, ours, requests, theirs, write_rows

from lit_gpt.args import EvalArgs
from lit_gpt.checkpoints.base import load_base
from lit_gpt.errors import UserError
from lit_gpt.evaluation.run import evaluate
from lit_gpt.evaluation.tasks import prepare
from lit_gpt.lightning import Fabric
from lit_gpt.prompts import Turn, open_style
from lit_gpt.tokenizer import Tokenizer

TEMPLATES = {
    "tagged": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}",
    "trimmed": "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}"
    "{% if m.role == 'assistant' %}</s>{% endif %}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    "no system": "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system texts') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}",
    "in the first question": "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{{ '<s>[INST] ' + (first if loop.first else '') + m.content + ' [/INST]' "
    "if m.role == 'user' else ' ' + m.content + '</s>' }}{% endfor %}",
}
ROWS = [
    {"question": f"How many legs do {n} spiders have?", "choices": [f"{n * k}" for k in (4, 6, 8, 10)], "answer": n % 4}
    for n in range(1, 7)
]
COMMON = "dataset_path: json\ndataset_kwargs: {data_files: {test: DATA}}\ntest_split: test\n"
CHOICE = 'output_type: multiple_choice\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
CHOICE += "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
WRITE = 'output_type: generate_until\ndoc_to_target: "{{choices[answer]}}"\n'
WRITE += "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
KINDS = {
    "spaced": CHOICE + 'doc_to_text: "{{question}} "\n',
    "delimited": CHOICE + 'doc_to_text: "{{question}}"\nfewshot_delimiter: "###\\n"\ntarget_delimiter: "\\n"\n',
    "begun": CHOICE + 'doc_to_text: "{{question}}"\ngen_prefix: "Answer:"\ndescription: "Count for {{answer}}."\n',
    "begun_spaced": CHOICE + 'doc_to_text: "{{question}}"\ngen_prefix: "Answer: "\n',
    "many_questions": CHOICE.replace("doc_to_target: answer", 'doc_to_target: "legs."') + 'doc_to_text: "{{answer}}"\n',
    "mutual": CHOICE.replace("metric: acc,", "metric: acc_mutual_info,") + 'doc_to_text: "{{question}}"\n',
    "written": WRITE + 'doc_to_text: "{{question}}"\ngeneration_kwargs: {until: ["\\n", "."], max_gen_toks: 6}\n',
    "written_begun": WRITE + 'doc_to_text: "{{question}}"\ngen_prefix: "It is"\ndescription: "Be brief.\\n\\n"\n'
    "generation_kwargs: {until: a, max_gen_toks: 4, do_sample: false}\n",
    "one_word": 'output_type: loglikelihood\ndoc_to_text: "{{question}}"\ndoc_to_target: " {{choices[answer]}}"\n'
    "metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]\n",
    "whole": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{question}}"\n'
    "metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]\n",
}


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory):
    """A folder with a task of each kind, and a group of two."""
    folder = tmp_path_factory.mktemp("tasks")
    data = write_rows(folder / "rows.jsonl", ROWS)
    for name, text in KINDS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{COMMON.replace('DATA', str(data))}{text}")
    group = "group: pair\ntask: [spaced, delimited]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    (folder / "pair.yaml").write_text(group)
    return folder


@pytest.fixture(scope="module", params=TEMPLATES)
def chatty(request, checkpoint, tmp_path_factory):
    """A checkpoint with a chat template."""
    place = tmp_path_factory.mktemp("chatty") / "tiny"
    shutil.copytree(checkpoint, place)
    (place / "chat_template.jinja").write_text(TEMPLATES[request.param])
    return place


def samples_of(folder, args):
    """(ours, lm-eval's hf model's): each question's arguments and answers by task, and its scores."""
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    args = replace(args, log_samples=True, bootstrap_iters=0, batch_size=4)
    style = args.prompt_style
    found = evaluate(
        fabric, load_base(fabric, folder)[0], Tokenizer(folder), prepare(args), args=args, style=style, about={}
    )
    manager, tasks = prepare(args)
    expected = simple_evaluate(
        theirs(folder, 4),
        tasks=tasks,
        task_manager=manager,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        bootstrap_iters=0,
        system_instruction=args.system,
        apply_chat_template=style is not None,
        **({} if args.fewshot_as_multiturn is None else {"fewshot_as_multiturn": args.fewshot_as_multiturn}),
        fewshot_random_seed=args.seed,
    )
    return found, expected


def assert_same(found, expected):
    """Texts to the byte; log-probabilities within the rounding of fp32."""
    assert found["samples"].keys() == expected["samples"].keys() and found["samples"]
    for task, samples in found["samples"].items():
        for ours_, theirs_ in zip(samples, expected["samples"][task], strict=True):
            assert ours_["arguments"] == theirs_["arguments"]
            if isinstance(ours_["resps"][0][0], tuple):
                pairs = [[resp for (resp,) in sample["resps"]] for sample in (ours_, theirs_)]
                assert_same_answers(*pairs, atol=2e-4)
            elif isinstance(ours_["resps"][0][0], float):
                assert ours_["resps"][0][0] == pytest.approx(theirs_["resps"][0][0], abs=2e-3)
            else:
                assert ours_["resps"] == theirs_["resps"]
    assert found["results"].keys() == expected["results"].keys()
    for name, entry in found["results"].items():
        numbers = {k: v for k, v in entry.items() if isinstance(v, float)}
        assert numbers == pytest.approx({k: expected["results"][name][k] for k in numbers}, rel=1e-4)


SETTINGS = [{"num_fewshot": 2}, {"num_fewshot": 1, "fewshot_as_multiturn": False, "system": "Think."}]


@pytest.mark.parametrize("settings", SETTINGS, ids=["turns", "system"])
def test_prompts_in_a_models_own_template_are_those_of_the_hf_model(settings, chatty, own_tasks):
    tasks = ("begun", "begun_spaced", "delimited", "written_begun", "one_word")
    args = EvalArgs(eval_tasks=tasks, task_path=own_tasks, limit=2, apply_prompt_style=True, **settings)
    assert_same(*samples_of(chatty, replace(args, prompt_style="chat_template")))


@pytest.mark.parametrize("settings", [{}, {"num_fewshot": 2, "system": "Think."}], ids=["zero", "two"])
def test_prompts_of_every_kind_of_task_are_those_of_the_hf_model(settings, checkpoint, own_tasks):
    names = [name for name in KINDS if name not in ("spaced", "delimited", *(["whole"] if settings else []))]
    args = EvalArgs(eval_tasks=(*names, "pair"), task_path=own_tasks, limit=0.5, **settings)
    found, expected = samples_of(checkpoint, args)
    assert_same(found, expected)
    assert found["n-samples"]["begun"]["effective"] == 3 and found["groups"]["pair"]["acc,none"] is not None


def test_mmlu_in_a_models_own_template_has_its_description_as_the_system_text(checkpoint, tmp_path, capsys):
    place = tmp_path / "tiny"
    shutil.copytree(checkpoint, place)
    (place / "chat_template.jinja").write_text(TEMPLATES["tagged"])
    data = write_rows(tmp_path / "anatomy.jsonl", [{**row, "subject": "anatomy"} for row in ROWS])
    args = EvalArgs(eval_tasks=("mmlu_anatomy",), task_data={"mmlu_anatomy": data}, num_fewshot=2)
    args = replace(args, apply_prompt_style=True, prompt_style="chat_template")
    found, expected = samples_of(place, args)
    assert_same(found, expected)
    asked = found["samples"]["mmlu_anatomy"][0]["arguments"][0][0]
    described = (
        "[system] The following are multiple choice questions (with answers) about anatomy.\n\n\n[user] How many"
    )
    assert asked.startswith(f"<s>{described}") and asked.count("[assistant] ") == 3


def test_a_system_text_that_a_template_refuses_is_left_out_and_named(checkpoint, tmp_path, capsys):
    place = tmp_path / "tiny"
    shutil.copytree(checkpoint, place)
    (place / "chat_template.jinja").write_text(TEMPLATES["no system"])
    lm = ours(place, 1, style="chat_template")
    history = [{"role": "system", "content": "Think."}, {"role": "user", "content": "Why?"}]
    for _ in range(2):
        assert lm.apply_chat_template(history) == lm.apply_chat_template(history[1:]) == "<user>Why?\n<assistant>\n"
    said = capsys.readouterr().err
    assert said.count("warning:") == 1 and "system texts" in said and "no system texts" in said
    (place / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    with pytest.raises(UserError, match="never"):
        ours(place, 1, style="chat_template").apply_chat_template(history)


HISTORY = [
    {"role": "system", "content": "Count.\n\n"},
    {"role": "user", "content": "1 and 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2 and 2?"},
]


@pytest.mark.parametrize("name", ["alpaca", "chatml", "vicuna", "plain", "phi-2", "llama2"])
def test_turns_in_a_style_are_what_training_shows(name, checkpoint):
    """The token that ends an answer is between turns, and a space that an answer begins with is the answer's."""
    tokenizer = Tokenizer(checkpoint)
    style, lm = open_style(name, checkpoint, tokenizer), ours(checkpoint, 1, style=name)
    asked = lm.apply_chat_template(HISTORY)
    turns = [*HISTORY[:-1], {"role": "user", "content": "2 and 2?"}, {"role": "assistant", "content": "4"}]
    first, second = style.exchanges([Turn(m["role"], m["content"].strip()) for m in turns])
    end = first.end or "</s>"
    lead = second.answer[: second.answer.index("4")]
    assert asked == first.prompt + first.answer + end + second.prompt + lead
    begun = [*HISTORY, {"role": "assistant", "content": "It"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == f"{asked}It"
    context, answer = lm._encode_pair(asked, "4")
    assert context == tokenizer.encode(asked.rstrip())
    assert tokenizer.decode(answer) == asked[len(asked.rstrip()) :] + "4"
    assert lm._encode_pair(asked, " 4") == lm._encode_pair(asked.removesuffix(lead), " 4")  # one space, not two


@pytest.mark.usefixtures("unpacked")
def test_an_answer_stops_at_the_token_that_ends_it_in_the_style(checkpoint):
    lm = ours(checkpoint, 1, style="plain")
    (end,), (letter,) = lm.tok_encode("<s>", False), lm.tok_encode("x", False)
    said = iter([letter, end, letter, letter, letter, letter, end, letter, letter, letter])
    lm.model.lm_head.register_forward_hook(lambda _, __, out: out.index_fill(-1, torch.tensor(next(said)), 1e4))
    asked = requests("generate_until", [("the", {"until": [], "max_gen_toks": 5, "do_sample": False})])
    assert lm.generate_until(asked, disable_tqdm=True) == ["xxxx"]  # a special token is not shown
    lm.style = replace(lm.style, end="<s>")
    assert lm.generate_until(asked, disable_tqdm=True) == ["x"]
    told = [HISTORY[1], HISTORY[2], HISTORY[3]]
    assert lm.apply_chat_template(told).startswith("1 and 1?2<s>")


def test_the_plain_style_asks_as_no_style_does(checkpoint, tmp_path):
    data = write_rows(tmp_path / "anatomy.jsonl", [{**row, "subject": "anatomy"} for row in ROWS])
    args = EvalArgs(eval_tasks=("mmlu_anatomy",), task_data={"mmlu_anatomy": data}, num_fewshot=2, log_samples=True)
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    model, tokenizer = load_base(fabric, checkpoint)[0], Tokenizer(checkpoint)
    asked = [
        [
            s["arguments"][0][0]
            for s in evaluate(fabric, model, tokenizer, prepare(args), args, style, {})["samples"]["mmlu_anatomy"]
        ]
        for style in (None, "plain")
    ]
    assert asked[0] == asked[1] and len(asked[0]) == 6


# answers without a token of their own


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    "pairs",
    [
        [("th", "e")],
        [("th", "e"), ("the ki", "n"), ("the", " king")],
        [("the king", ""), ("", "")],
        [("the king and", " the queen"), ("th", "e"), ("the king and", " a ring")],
    ],
)
def test_an_answer_that_melts_into_its_question_is_certain_at_any_batch_size(pairs, batch_size, checkpoint, capsys):
    lm, reference = ours(checkpoint, batch_size), theirs(checkpoint, batch_size)
    found = lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    melted = [not any(pair) or not reference._encode_pair(*pair)[1] for pair in pairs]
    assert any(melted)
    assert [answer for answer, gone in zip(found, melted, strict=True) if gone] == [(0.0, True)] * sum(melted)
    said = capsys.readouterr().err
    assert said.count("have no token of their own") == 1 and "target_delimiter" in said
    rest = [pair for pair, gone in zip(pairs, melted, strict=True) if not gone]
    if rest:
        expected = reference.loglikelihood(requests("loglikelihood", rest), disable_tqdm=True)
        kept = [answer for answer, gone in zip(found, melted, strict=True) if not gone]
        assert_same_answers(kept, expected, atol=2e-4)


def test_a_question_of_white_space_alone_is_named(checkpoint):
    with pytest.raises(UserError, match=r"white space alone \(' \\n'\).* 'king'"):
        ours(checkpoint, 1).loglikelihood(requests("loglikelihood", [(" \n", "king")]), disable_tqdm=True)


def test_questions_that_do_not_fit_are_counted(checkpoint, capsys):
    lm = ours(checkpoint, 4)
    long = "x" * 600
    lm.loglikelihood(requests("loglikelihood", [(long, "y"), ("x", "y"), (long, "z")]), disable_tqdm=True)
    assert "2 of 3 questions are longer than 512 tokens" in capsys.readouterr().err
    settings = {"until": [], "max_gen_toks": 2, "do_sample": False}
    lm.generate_until(requests("generate_until", [(long, settings), ("x", settings)]), disable_tqdm=True)
    assert "1 of 2 questions are longer than 510 tokens" in capsys.readouterr().err


def test_more_new_tokens_than_the_model_has_room_for_are_cut_with_a_warning(checkpoint, capsys):
    from lm_eval.models.utils import maybe_truncate

    lm, long = ours(checkpoint, 3), "x y " * 300
    asked = {"until": [], "do_sample": False}
    contexts = ["x y " * 120, "x y " * 125, long]
    assert 470 < len(lm.tok_encode(contexts[0])) < len(lm.tok_encode(contexts[1])) < 512
    for new in (512, 4096):
        texts = lm.generate_until(
            requests("generate_until", [(c, asked | {"max_gen_toks": new}) for c in contexts]), disable_tqdm=True
        )
        warned = capsys.readouterr().err.count(f"asks for {new} new tokens, and the model has room for 512")
        assert warned == 1
        for context, text in zip(contexts, texts, strict=True):
            ids = lm.tok_encode(context)
            kept, left = maybe_truncate(ids, new, 512, shrink_gen_toks=True, verbose=False)
            (alone,) = lm.generate_until(
                requests("generate_until", [(lm.tokenizer.decode(kept), asked | {"max_gen_toks": left})]), True
            )
            assert text == alone or context == long  # its first token may be part of a word
    capsys.readouterr()
    with pytest.raises(AssertionError, match="must be less than model's maximum"):  # what lm-eval's hf model does
        theirs(checkpoint, 1).generate_until(
            requests("generate_until", [("the king", asked | {"max_gen_toks": 512})]), disable_tqdm=True
        )
