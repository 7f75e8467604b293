"""One base and several runs behind one server, chosen by the name in the request."""

import shutil
from dataclasses import replace

import pytest
import torch
from chats import save_run_of
from serving import another, error_of, greedy_of, loaded_from, serving, with_template

from lit_gpt.args import ServeArgs
from lit_gpt.checkpoints.runs import load_finetuned, read_run, save_run
from lit_gpt.errors import UserError
from lit_gpt.fabric import make_fabric
from lit_gpt.generation.request import GREEDY, Request, Sampling
from lit_gpt.serve.load import What, load
from lit_gpt.serve.models import names_of

TALK = [{"role": "user", "content": "the hand?"}]


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    return with_template(checkpoint, tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "mine"
    save_run_of("lora", folder, out)
    return out


@pytest.fixture(scope="module")
def client(folder, run):
    loaded = loaded_from(folder, runs=(run,))
    with serving(loaded) as client:
        client.loaded = loaded
        yield client


def test_base_and_run_are_listed_and_each_answers_as_it_does_alone(client, folder, run):
    first, second = client.get("/v1/models").json()["data"]
    assert (first["id"], first["parent"], second["id"], second["parent"]) == ("tiny", None, "mine", "tiny")
    alone, _ = load_finetuned(make_fabric(), folder, run)
    prompt = client.loaded.tokenizer.encode("the hand and")
    want = {"tiny": client.loaded.engine.model, "mine": alone.eval()}
    texts = {}
    for name, model in want.items():
        wish = {"model": name, "prompt": prompt, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
        found = client.post("/v1/completions", json=wish | {"return_token_ids": True}).json()
        assert found["model"] == name
        texts[name] = found["choices"][0]["token_ids"]
        assert texts[name] == greedy_of(model, prompt, 6)
    assert texts["tiny"] != texts["mine"]
    wish = {"prompt": prompt, "max_tokens": 6, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    assert client.post("/v1/completions", json=wish).json()["choices"][0]["token_ids"] == texts["tiny"]


def test_each_is_asked_in_its_own_prompt_style(client):
    def prompt_of(name):
        wish = {"model": name, "messages": TALK, "max_tokens": 1, "return_token_ids": True}
        ids = client.post("/v1/chat/completions", json=wish).json()["prompt_token_ids"]
        return client.loaded.tokenizer.decode(ids)

    assert "### Response:" in prompt_of("mine") and "### Response:" not in prompt_of("tiny")


def test_helm_chooses_a_run_by_its_address(client):
    wish = {"prompt": "the hand and", "temperature": 1e-7, "max_new_tokens": 6}
    base = client.post("/process", json=wish).json()
    mine = client.post("/runs/mine/process", json=wish).json()
    assert base["tokens"] != mine["tokens"]
    assert client.post("/runs/tiny/process", json=wish).json()["tokens"] == base["tokens"]
    assert error_of(client.post("/runs/other/process", json=wish), 404)
    text = {"text": "the hand"}
    assert client.post("/runs/mine/tokenize", json=text).json()["tokens"] == client.loaded.tokenizer.encode("the hand")
    assert client.post("/runs/mine/decode", json={"tokens": [5]}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
def test_of_several_models_an_unknown_one_is_no_other(client, path):
    asked = {"messages": TALK} if "chat" in path else {"prompt": "a"}
    error = error_of(client.post(path, json=asked | {"model": "other"}), 404)
    assert error["code"] == "model_not_found" and "mine" in error["message"] and error["param"] == "model"


def test_a_run_of_any_method_is_served_in_place_of_the_base(folder, tmp_path):
    run = save_run_of("adapter_v2", folder, tmp_path / "v2")
    loaded = load(What(folder, finetuned_path=run), ServeArgs(max_rows=2))
    assert [m.name for m in loaded.models.models] == ["v2"]
    with pytest.raises(UserError, match="only LoRA runs"):
        load(What(folder, runs=(run,)), ServeArgs())


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a CPU")
def test_a_server_guesses_on_a_cpu_and_its_texts_stay_the_same(folder):
    loaded = load(What(folder), ServeArgs(max_rows=8))
    repeating = Sampling(temperature=0, logit_bias={5: 100.0})
    ways = (GREEDY, Sampling(seed=3, top_k=2), repeating)
    requests = [Request([5, 6, 7, 8, 9], 40, sampling) for sampling in ways]
    got, want = loaded.engine.complete(requests), another(loaded).engine.complete(requests)
    assert [[t.id for t in a.tokens] for a in got] == [[t.id for t in a.tokens] for a in want]
    assert loaded.engine.speculation is not None and loaded.engine.speculation.n_right > 20
    assert load(What(folder), ServeArgs(max_rows=8, speculate="none")).engine.speculation is None


def test_a_run_over_a_base_in_another_form_than_in_its_training_is_named(folder, run, tmp_path, capsys):
    load(What(folder, runs=(run,)), ServeArgs(max_rows=2))
    assert capsys.readouterr().err == ""
    over = tmp_path / "over"
    shutil.copytree(run, over)
    save_run(replace(read_run(run), quantize="int8"), over)
    load(What(folder, runs=(run, over)), ServeArgs(max_rows=2))
    assert capsys.readouterr().err == (
        "warning: over was trained over weights in int8, and its base is served in full precision; --quantize int8 "
        "serves all of them in the former\n"
    )


def test_names_are_as_short_as_they_can_be(tmp_path):
    base, same, other = tmp_path / "org" / "m", tmp_path / "lora" / "m", tmp_path / "lora" / "x"
    assert names_of(base, []) == ["m"]
    assert names_of(base, [same, other]) == ["org/m", "lora/m", "x"]
    with pytest.raises(UserError, match="twice"):
        names_of(base, [other, other])
