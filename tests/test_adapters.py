"""Adapters begin as the base, compute what the papers say, train all they have and nothing else, and are read back."""

import copy
import json
import math
import shutil
from dataclasses import asdict

import pytest
import torch
from conftest import assert_one_line_error
from draws import fast, plainly
from published import PUBLISHED, n_parameters
from runs import train_briefly
from script_processes import run
from tiny import assert_same, deep, documents_of, gradients, kept_a_token, plain_loss, tiny

from lit_gpt.args import AdapterArgs
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import Run, load_finetuned, save_run
from lit_gpt.checkpoints.trained import save_trained, trained_path
from lit_gpt.config import Config
from lit_gpt.data.batches import collate
from lit_gpt.errors import UserError
from lit_gpt.families import config_for
from lit_gpt.generation.lockstep.batch import generate_batch
from lit_gpt.generation.lockstep.decode import Decoder
from lit_gpt.layers.linear import Linear
from lit_gpt.lightning import Fabric
from lit_gpt.methods import METHODS, adapter, adapter_v2
from lit_gpt.methods.adapter import AdapterAttention
from lit_gpt.model import GPT
from lit_gpt.training.flops import estimated_flops, measured_flops
from lit_gpt.training.loss import loss_sum
from lit_gpt.training.memory import kept_by_wrappers, kept_values

V = {"adapter": adapter, "adapter_v2": adapter_v2}
TRAINABLE = {"adapter": adapter.trainable, "adapter_v2": adapter_v2.trainable}
FROM_1 = AdapterArgs(adapter_start_layer=1)
KINDS = ("llama", "llama-gqa", "llama-mqa", "llama-tied", "mixtral", "qwen3", "olmo2", "stablelm-12b", "neox", "gemma2",
         "falcon", "mistral", "gemma")  # fmt: skip
"""MHA, GQA, MQA, mixture, the three norms of queries and keys, parallel blocks, soft caps and windows."""
TRACED = ("llama-gqa", "gemma2", "smollm3")
"""Where torch.compile traces the prompt's part, too: plain, with soft caps and windows, and in layers of two kinds."""


def adapted(kind, method, args=FROM_1, moved=True, **overrides):
    """A tiny model with adapters, which have random values if `moved`."""
    model = tiny(kind, **overrides)
    V[method].inject(model, args)
    return move(model) if moved else model


def move(model):
    """Change what trains, so that it matters."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad and "adapter_wte" not in name:
                p += torch.randn_like(p) * (0.5 if "gating" in name else 0.1)
    return model


@pytest.fixture(params=V)
def method(request):
    return request.param


@pytest.mark.parametrize("name", PUBLISHED)
def test_trainable_counts_are_the_published_ones(name, method):
    assert n_parameters(config_for(name), V[method].inject, AdapterArgs()) == int(PUBLISHED[name][method])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_before_the_first_step_a_model_computes_what_its_base_does(kind, method, dtype):
    base = tiny(kind).to(dtype)
    model = copy.deepcopy(base)
    V[method].inject(model, FROM_1)
    ids = torch.randint(0, 320, (2, 16), generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(ids), base(ids)) and model(ids).dtype == dtype
    batch = collate(documents_of((9, 20, 1)))
    mine, its = (m.hidden(batch.ids[None], documents=batch.documents) for m in (model, base))
    torch.testing.assert_close(mine, its, rtol=0, atol=1e-6)  # a weight that trains has another kernel in a mixture
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_trains_gets_a_gradient_after_a_validation_and_twice_in_a_row(kind, method):
    """Lit-GPT kept the prompt's keys and values from the first pass: after a validation the prompt never trained."""
    model = adapted(kind, method)
    batch = collate(documents_of((40, 33, 40)))
    found = []
    for _ in range(2):
        with torch.no_grad():
            model.eval()(torch.randint(0, 320, (1, 8)))
            loss_sum(model, batch)
        model.train().zero_grad()
        loss_sum(model, batch).backward()
        for name, p in model.named_parameters():
            got = p.grad is not None and bool(p.grad.any())
            assert got == p.requires_grad == TRAINABLE[method](name), name
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_prompt_that_changed_is_read_as_it_is_now(method):
    model = adapted("llama", method)
    ids = torch.arange(8)[None]
    before = model(ids)
    with torch.no_grad():
        model.transformer.h[1].attn.adapter_wte.weight += 1
    assert (model(ids) - before).abs().max() > 1e-3
    assert len(list(model.buffers())) == len(list(GPT(model.config).buffers()))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_loss_and_gradients_are_those_of_each_document_alone(kind, method):
    assert_same(adapted(kind, method), documents_of((7, 1, 33, 12)))


def test_blocks_that_are_computed_again_change_nothing(method):
    model = adapted("llama-gqa", method).train()
    batch = collate(documents_of((7, 1, 33, 12)))
    results = []
    for model.n_recomputed in (0, 2):
        results.append(gradients(model, loss_sum(model, batch)))
    assert results[0].keys() == results[1].keys()
    for name, g in results[0].items():
        torch.testing.assert_close(results[1][name], g, rtol=1e-5, atol=1e-7)


def test_in_16_bits_loss_and_gradients_are_within_rounding_of_those_in_32(method):
    model = adapted("llama-gqa", method)
    samples = documents_of((7, 33, 230))
    want = gradients(model, plain_loss(model, samples))
    for p in model.parameters():
        if not p.requires_grad:
            p.data = p.data.bfloat16()
    got = gradients(model, loss_sum(model, collate(samples)))
    assert got.keys() == want.keys()
    for name, g in got.items():
        assert g.dtype == torch.float32 and (g - want[name]).norm() < 0.1 * want[name].norm() + 1e-3, name


# the paper's formula, in numbers of 64 bits and loops


def reference_attention(attn, x, config, dims=8):
    """Rows of x (T, C) in one sequence -> (T, C), from the weights of `attn`."""
    H, G, D = config.n_head, config.n_query_groups, config.head_size

    def heads(rows):
        out = rows @ attn.qkv.weight.double().T
        out = out if attn.qkv.bias is None else out + attn.qkv.bias.double()
        return (
            out[:, : H * D].reshape(-1, H, D),
            out[:, H * D : -G * D].reshape(-1, G, D),
            out[:, -G * D :].reshape(-1, G, D),
        )

    def turn(vector, position):
        out, n = vector.clone(), config.rope_n_elem
        for i in range(n // 2):
            angle = position / config.rope_base ** (2 * i / n)
            a, b = vector[i], vector[i + n // 2]
            out[i], out[i + n // 2] = (
                a * math.cos(angle) - b * math.sin(angle),
                b * math.cos(angle) + a * math.sin(angle),
            )
        return out

    def mean(query, keys, values):
        scores = torch.stack([query @ key for key in keys]) / D**0.5
        cap = config.attn_logit_softcapping
        scores = cap * torch.tanh(scores / cap) if cap else scores
        weights = torch.exp(scores) / torch.exp(scores).sum()
        return sum(w * value for w, value in zip(weights, values, strict=True))

    q, k, v = heads(x)
    _, prompt_k, prompt_v = heads(attn.adapter_wte.weight.double())
    rows = []
    for t in range(len(x)):
        parts = []
        for h in range(H):
            g = h * G // H
            query = turn(q[t, h], t)
            seen = [turn(k[s, g], s) for s in range(t + 1)]
            word = mean(query, seen, v[: t + 1, g])
            prompt = mean(query, prompt_k[:, g], prompt_v[:, g])
            parts.append(word + attn.gating_factor[0, 0, h, 0].double() * prompt)
        rows.append(torch.cat(parts) @ attn.proj.weight.double().T)
    out = torch.stack(rows)
    return out if attn.proj.bias is None else out + attn.proj.bias.double()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("traits", [{}, {"rotary_percentage": 0.5, "qkv_bias": True}, {"attn_logit_softcapping": 2.0}])
def test_attention_with_a_prompt_is_the_papers(groups, traits):
    config = Config(n_layer=1, n_head=4, n_query_groups=groups, n_embd=32, vocab_size=64, block_size=64,
                    **{"rotary_percentage": 1.0} | traits)  # fmt: skip
    torch.manual_seed(0)
    model = GPT(config)
    adapter.inject(model, AdapterArgs(adapter_prompt_length=3, adapter_start_layer=0))
    attn = model.transformer.h[0].attn
    assert isinstance(attn, AdapterAttention)
    torch.nn.init.normal_(attn.gating_factor)
    x = torch.randn(6, 32)
    want = reference_attention(attn, x.double(), config)
    cos, sin = model.rope(torch.arange(6), 6)
    torch.testing.assert_close(attn(x[None], cos, sin)[0].double(), want, rtol=1e-4, atol=1e-5)
    documents = collate([(torch.arange(7).int().numpy(),) * 2]).documents  # the last token is not computed
    torch.testing.assert_close(attn(x[None], cos, sin, documents=documents)[0].double(), want, rtol=1e-4, atol=1e-5)


def test_a_layer_with_scale_and_bias_is_what_autograd_makes_of_the_formula():
    torch.manual_seed(0)
    linear = Linear(6, 5)
    layer = adapter_v2.AdapterLinear(linear.requires_grad_(False))
    torch.nn.init.normal_(layer.adapter_bias), torch.nn.init.normal_(layer.adapter_scale)
    x, dy = torch.randn(3, 4, 6, requires_grad=True), torch.randn(3, 4, 5)
    want = layer.adapter_scale * (x @ linear.weight.T + linear.bias + layer.adapter_bias)
    trained = (x, layer.adapter_bias, layer.adapter_scale)
    torch.testing.assert_close(layer(x), want)
    for a, b in zip(torch.autograd.grad(layer(x), trained, dy), torch.autograd.grad(want, trained, dy), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "kind", ["llama-gqa", "llama-mqa", "neox", "qwen3", "gemma2", "mistral", "mixtral", "smollm3", "gemma3"]
)
def test_tokens_drawn_with_a_cache_are_those_without_one(kind, method):
    model = adapted(kind, method).eval()
    prompts = [[5, 9, 200, 7], [7], [3, 1, 4, 1, 5, 9, 2, 6]]
    want = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        want.append(ids[len(prompt) :])
    columns = [list(c) for c in zip(*want, strict=True)]
    assert plainly(model, prompts, 12) == columns
    assert list(generate_batch(model, prompts, 12, temperature=0)) == columns
    if kind in TRACED and method == "adapter_v2":  # the other's layers are traced for their logits
        assert fast(model, prompts, 12) == columns


@pytest.mark.parametrize(
    "kind, way, method",
    [(k, "plain", m) for k in ("llama-gqa", "llama-mqa", "neox", "qwen3", "gemma2", "smollm3", "gemma3") for m in V]
    + [(kind, "eager", "adapter") for kind in TRACED],
)
@torch.inference_mode()
def test_logits_of_decoding_have_the_prompts_part(kind, way, method):
    model = adapted(kind, method).eval()
    ids = torch.randint(0, 320, (2, 14), generator=torch.Generator().manual_seed(1))
    decoder = Decoder(model, 2, 14, way)
    got = [decoder.prefill(ids[:, :5].tolist()), *(decoder.step(ids[:, i]).clone() for i in range(5, 14))]
    want = model(ids)[:, 4:]
    torch.testing.assert_close(torch.stack(got, 1), want, rtol=1e-4, atol=1e-4)
    model.transformer.h[1].attn.gating_factor.data.zero_()
    assert (model(ids)[:, 4:] - want).abs().amax((0, 2)).min() > 1e-3


def test_the_loop_moves_all_that_trains_and_no_bit_of_the_base(method, tmp_path):
    model = deep()
    V[method].inject(model, AdapterArgs())
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    before, after = train_briefly(model, tmp_path)
    assert after < before
    for name, p in model.named_parameters():
        assert torch.equal(p, start[name]) == (not TRAINABLE[method](name)), name
    saved = torch.load(tmp_path / "lit_model_finetuned.pth", weights_only=True)
    assert saved.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(x, model.get_parameter(n)) for n, x in saved.items())


@pytest.mark.parametrize("quantize", [None, "int8", "bnb.nf4"])
def test_what_is_saved_is_read_back_without_being_told_how(method, quantize, checkpoint, tmp_path):
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    model, digest = load_base(fabric, checkpoint, quantize)
    args = AdapterArgs(adapter_prompt_length=3, adapter_start_layer=1)
    METHODS[method].inject(model, args)
    move(model)
    path = trained_path(tmp_path, method)
    assert path.name == "lit_model_adapter_finetuned.pth"
    save_trained(model, path)
    save_run(Run(method, asdict(args), "plain", str(checkpoint), digest, {}, {}, {}, quantize), tmp_path)
    names = set(torch.load(path, weights_only=True))
    assert {"transformer.h.1.attn.adapter_wte.weight", "transformer.h.1.attn.gating_factor"} <= names
    assert ("transformer.h.0.attn.qkv.adapter_scale" in names) == ("lm_head.adapter_bias" in names) == (
        "transformer.ln_f.weight" in names) == (method == "adapter_v2")  # fmt: skip
    loaded, run = load_finetuned(fabric, checkpoint, path)
    ids = torch.arange(20)[None]
    assert torch.equal(loaded(ids), model(ids)) and run.method == method


def test_a_model_with_fewer_layers_than_the_first_with_a_prompt_is_refused():
    with pytest.raises(UserError, match="--adapter_start_layer 2 leaves nothing to train"):
        adapter.inject(deep(2), AdapterArgs())


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_what_a_block_keeps_is_what_the_count_says(kind, method):
    kept = {}
    for n_layer in (3, 4):
        model = adapted(kind, method, num_hidden_layers=n_layer).train()
        kept[n_layer] = kept_a_token(model, 256)
    per_block = kept[4] - kept[3]
    wanted = kept_values(model.config) + kept_by_wrappers(model)
    statistics = model.config.n_head + 4  # logsumexp; mean and deviation of layer norms
    prompts = 10 * (model.config.n_embd + 2 * sum(model.config.qkv_sizes)) / 256  # ten vectors, and what they become
    assert wanted <= per_block <= wanted + statistics + prompts


@pytest.mark.parametrize(
    "traits", [{}, {"tie_embeddings": True}, {"mlp": "moe", "n_expert": 4, "n_expert_per_token": 2}]
)
def test_the_estimate_of_operations_is_near_the_count(traits, method):
    with torch.device("meta"):
        model = deep(6, n_embd=256, head_size=64, intermediate_size=512, block_size=512, **traits)
        V[method].inject(model, AdapterArgs())
    assert measured_flops(model, 4, 64) == pytest.approx(estimated_flops(model, 4, 64), rel=0.1)


ROWS = [
    {"instruction": f"say {w} {n}", "input": "", "output": " ".join([w] * n)} for w in ("ab", "cd") for n in (1, 2, 3)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, checkpoint):
    """A folder in which the road has been walked up to the data."""
    place = tmp_path_factory.mktemp("methods")
    shutil.copytree(checkpoint, place / "checkpoints" / "org" / "tiny")
    (place / "rows.json").write_text(json.dumps(ROWS))
    p = run("scripts/prepare_alpaca.py", "--checkpoint_dir", "checkpoints/org/tiny", "--data_file", "rows.json",
            "--destination_path", "data/rows", "--prompt_style", "plain", "--test_split_fraction", 0.2,
            cwd=place)  # fmt: skip
    assert p.returncode == 0, p.stderr
    return place


@pytest.mark.smoke
@pytest.mark.parametrize("method, flags", [("adapter", ["--adapter_start_layer", 1]), ("adapter_v2", []), ("full", [])])
def test_the_scripts_of_a_method_finetune_and_answer(method, flags, place):
    base = ("--checkpoint_dir", "checkpoints/org/tiny")
    short = ("--batch_size", 4, "--micro_batch_size", 2, "--epochs", 1)
    p = run(f"finetune/{method}.py", *base, "--data_dir", "data/rows", *short, *flags, cwd=place)
    assert p.returncode == 0, p.stderr
    file = "lit_model_finetuned.pth" if method == "full" else "lit_model_adapter_finetuned.pth"
    out = place / "out" / method / "tiny"
    assert f"out/{method}/tiny/{file}" in p.stdout and (out / file).is_file()
    ask = ("--prompt", "say ab 2", "--temperature", 0, "--max_new_tokens", 6)
    answer = run(f"generate/{method}.py", *base, *ask, cwd=place)
    assert answer.returncode == 0 and answer.stdout.endswith("\n"), answer.stderr
    again = run(f"generate/{method}.py", *base, *ask, "--finetuned_path", out / file, cwd=place)
    assert again.stdout == answer.stdout
    if method != "adapter":  # which loads as v2 does
        scored = place / f"{method}.json"
        question = {"question": "What?", "mc1_targets": {"choices": ["ab", "cd"], "labels": [1, 0]}}
        (place / "questions.jsonl").write_text(json.dumps(question) + "\n")
        p = run("eval/lm_eval_harness.py", *base, "--finetuned_path", out, "--eval_tasks", "[truthfulqa_mc1]",
                "--task_data", "{truthfulqa_mc1: questions.jsonl}", "--save_filepath", scored, cwd=place)  # fmt: skip
        assert p.returncode == 0 and "truthfulqa_mc1" in p.stdout, p.stderr
        assert json.loads(scored.read_text())["config"]["model_args"]["method"] == method
    if method == "full":
        p = run("finetune/full.py", *base, "--data_dir", "data/rows", *short, cwd=place)
        assert_one_line_error(p, "out/full/tiny", "--overwrite true")
        before = torch.load(out / file, weights_only=True)
        away = ("--offload_gradients", "true", "--overwrite", "true")
        p = run("finetune/full.py", *base, "--data_dir", "data/rows", *short, *away, cwd=place)
        assert p.returncode == 0, p.stderr
        after = torch.load(out / file, weights_only=True)
        assert all(torch.equal(after[name], x) for name, x in before.items())
