"""Several LoRA runs are served over one copy of the base weights, each exactly as if it were served alone."""

import copy

import pytest
import torch
from conftest import ALL, VARIANTS, write_tokenizer
from runs import run_of
from tiny import tiny

from lit_gpt.args import LoRARunArgs
from lit_gpt.checkpoints.runs import save_run
from lit_gpt.errors import UserError
from lit_gpt.generation.batching.runs import SharedRun, load_shared
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import GREEDY, Request
from lit_gpt.methods import lora, trained_parameters
from lit_gpt.methods.lora.shared import updates_of
from lit_gpt.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("dirty_memory")

RUNS = {
    "narrow": {"lora_r": 2},
    "wide": {"lora_r": 4, **ALL},
    "dora": {"lora_r": 3, **ALL, **VARIANTS["dora"]},
    "pissa": {"lora_r": 2, **VARIANTS["pissa"], "lora_mlp": True},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


def trained(base, flags, seed):
    """A run of LoRA on `base`: the finetuned model, its arguments and its trained weights."""
    model, args = copy.deepcopy(base), LoRARunArgs(**flags)
    lora.inject(model, args)
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
        if "magnitude" in name:
            p.data *= 1 + 0.3 * torch.randn_like(p)
    return model.eval(), args, trained_parameters(model)


def answers_of(engine, requests):
    return [([t.id for t in a.tokens], [t.logprob for t in a.prompt[1:]]) for a in engine.complete(requests)]


@pytest.mark.parametrize("kind", ["llama-tied", "gemma2", "mixtral", "neox"])
def test_rows_of_different_runs_in_one_batch_get_what_each_run_gives_alone(kind, tokenizer):
    base = tiny(kind)
    before = {n: (p.clone(), p.requires_grad) for n, p in base.named_parameters()}
    made = {name: trained(base, flags, i) for i, (name, flags) in enumerate(RUNS.items())}
    shared = {
        name: SharedRun(run_of("lora"), updates_of(base, args, weights, name))
        for name, (_, args, weights) in made.items()
    }
    prompt = torch.randint(0, 320, (40,)).tolist()  # the same for all: no run reads another's keys and values
    names = [None, *RUNS, None, *RUNS]
    requests = [Request([*prompt, i // 5], 8, GREEDY, prompt_logprobs=0, run=name) for i, name in enumerate(names)]
    engine = Engine(base, tokenizer, runs=shared, max_rows=7, max_tokens=600, prefill_chunk=50)
    found = answers_of(engine, requests)
    models = {None: base} | {name: model for name, (model, _, _) in made.items()}
    for name, request, (ids, logprobs) in zip(names, requests, found, strict=True):
        alone = Engine(models[name], tokenizer, max_tokens=64)
        ((want_ids, want),) = answers_of(alone, [Request(request.ids, 8, GREEDY, prompt_logprobs=0)])
        assert ids == want_ids, name
        assert logprobs == pytest.approx(want, abs=2e-4)
    assert len({tuple(ids) for ids, _ in found}) > 4  # the runs differ
    assert all(torch.equal(p, before[n][0]) and p.requires_grad == before[n][1] for n, p in base.named_parameters())


def test_a_run_that_cannot_share_the_base_is_refused_by_name(tokenizer, tmp_path):
    base = tiny("llama-gqa")
    for method in ("adapter", "adapter_v2", "full"):
        folder = tmp_path / method
        folder.mkdir()
        save_run(run_of(method), folder)
        with pytest.raises(UserError, match=f"the run mine .* was trained with {method}; only LoRA runs"):
            load_shared(base, "digest", tmp_path, {"mine": folder})
    with pytest.raises(UserError, match="the run theirs replaces whole weights"):
        updates_of(base, LoRARunArgs(whole=("transformer.ln_f.weight",)), {}, "theirs")
    _, args, weights = trained(tiny("llama"), {"lora_r": 2}, 0)
    with pytest.raises(UserError, match="the run theirs is of another model"):
        updates_of(base, args, weights, "theirs")
    engine = Engine(base, tokenizer, max_tokens=64)
    with pytest.raises(UserError, match="no run 'other'; the model is served alone"):
        engine.complete([Request([1], 1, run="other")])
