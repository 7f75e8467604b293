"""Real clients of a server: the `openai` package, and lm-eval over HTTP against lm-eval in this process."""

import json

import openai
import pytest
from serving import loaded_from, serving, with_template

from lit_gpt.evaluation.harness import LitLM

TALK = [{"role": "user", "content": "the hand?"}]


@pytest.fixture(scope="module")
def loaded(checkpoint, tmp_path_factory):
    return loaded_from(with_template(checkpoint, tmp_path_factory.mktemp("served") / "tiny"))


@pytest.fixture(scope="module")
def client(loaded):
    with serving(loaded, key="k") as client:
        yield client


@pytest.fixture(scope="module")
def ai(client):
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="k", max_retries=0) as ai:
        yield ai


def test_openais_package_asks_and_reads_texts(ai):
    (model,) = ai.models.list().data
    assert ai.models.retrieve(model.id).id == model.id
    wish = {"model": model.id, "prompt": "the and", "max_tokens": 5, "temperature": 0}
    whole = ai.completions.create(**wish, logprobs=2, extra_body={"ignore_eos": True})
    assert whole.usage.completion_tokens == 5 and len(whole.choices[0].logprobs.tokens) == 5
    parts = list(ai.completions.create(**wish, stream=True, extra_body={"ignore_eos": True}))
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text


def test_openais_package_asks_and_reads_conversations(ai):
    wish = {"model": "any", "messages": TALK, "max_tokens": 6, "temperature": 0, "extra_body": {"ignore_eos": True}}
    whole = ai.chat.completions.create(**wish, logprobs=True, top_logprobs=1)
    assert whole.choices[0].finish_reason == "length" and len(whole.choices[0].logprobs.content) == 6
    parts = list(ai.chat.completions.create(**wish, stream=True, stream_options={"include_usage": True}))
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == whole.choices[0].message.content
    assert parts[-1].usage == whole.usage or parts[-1].usage.completion_tokens == 6


def test_openais_package_knows_our_errors(ai, client):
    with pytest.raises(openai.BadRequestError, match="tools"):
        ai.chat.completions.create(model="m", messages=TALK, tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("nothing")


STYLED = {"apply_chat_template": True}
ROWS = [
    {"q": "the hand and", "choices": [" the thing", " an ant", " in there"], "gold": 0},
    {"q": "an ant in the", "choices": [" hand", " thing and then"], "gold": 1},
    {"q": "then the", "choices": [" and", " ing", " the and the", " er"], "gold": 2},
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A task of each kind of request that lm-eval has, over rows of our own."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    common = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"test": str(rows)}}}
    common |= {"test_split": "test", "doc_to_text": "{{q}}"}
    choice = {
        "task": "choices",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
    }
    rolling = {"task": "rolling", "output_type": "loglikelihood_rolling", "doc_to_text": ""}
    rolling |= {"doc_to_target": "{{q}} {{choices[0]}}", "metric_list": [{"metric": "word_perplexity"}]}
    text = {"task": "texts", "output_type": "generate_until", "doc_to_target": "{{q}}"}
    text |= {"generation_kwargs": {"until": ["\n", "zz"], "max_gen_toks": 8, "temperature": 0.0, "do_sample": False}}
    text["metric_list"] = [{"metric": "exact_match"}]
    return [common | kind for kind in (choice, rolling, text)]


def answers(lm, tasks, **options):
    """What lm-eval gets for each question, by task."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager, get_task_dict

    manager = TaskManager(include_defaults=False)
    chosen = list(get_task_dict(tasks, manager).values())
    found = simple_evaluate(model=lm, tasks=chosen, task_manager=manager, bootstrap_iters=0, **options)
    return {name: [sample["resps"] for sample in samples] for name, samples in found["samples"].items()}


def test_lm_eval_over_http_scores_as_it_does_in_this_process(loaded, client, tasks, monkeypatch):
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setenv("OPENAI_API_KEY", "k")
    want = answers(LitLM(loaded.engine.model, loaded.tokenizer), tasks)
    wish = {"base_url": f"{client.base_url}/v1/completions", "model": "any", "tokenizer_backend": "remote"}
    wish |= {"max_length": loaded.block_size, "auth_token": "k"}
    for more in ({"batch_size": 3}, {"num_concurrent": 4}):
        got = answers(LocalCompletionsAPI(**wish, **more), tasks)
        assert got["texts"] == want["texts"]
        for mine, theirs in zip(got["choices"], want["choices"], strict=True):
            for [(a, a_greedy)], [(b, b_greedy)] in zip(mine, theirs, strict=True):
                assert float(a) == pytest.approx(float(b), abs=1e-4) and str(a_greedy) == str(b_greedy)
        for [[a]], [[b]] in zip(got["rolling"], want["rolling"], strict=True):
            assert float(a) == pytest.approx(float(b), abs=1e-4)


def test_lm_evals_chats_are_answered_in_the_models_prompt_style(loaded, client, tasks, monkeypatch):
    from lm_eval.models.openai_completions import LocalChatCompletion

    monkeypatch.setenv("OPENAI_API_KEY", "k")
    want = answers(LitLM(loaded.engine.model, loaded.tokenizer, prompt_style="chat_template"), tasks[2:], **STYLED)
    url = f"{client.base_url}/v1/chat/completions"
    assert answers(LocalChatCompletion(base_url=url, model="any"), tasks[2:], **STYLED) == want
