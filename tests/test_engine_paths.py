"""Whatever a model's layers are made of, the engine's tokens are those of the model by itself."""

import copy

import pytest
import torch
from conftest import ALL, write_tokenizer
from runs import run_of
from tiny import tiny

from lit_gpt.args import AdapterArgs, FullArgs, LoRARunArgs
from lit_gpt.generation.batching.runs import SharedRun
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.lockstep.batch import generate_batch
from lit_gpt.generation.request import GREEDY, Request
from lit_gpt.layers.linear import Linear
from lit_gpt.layers.quantize import QUANTIZATIONS, quantizable, quantized
from lit_gpt.methods import METHODS, trained_parameters
from lit_gpt.methods.lora.shared import updates_of
from lit_gpt.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("dirty_memory")

LENGTHS = (5, 17, 1, 30)
N = 12
PROMPTS = [torch.randint(0, 320, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in LENGTHS]
ARGS = {
    "lora": LoRARunArgs(lora_r=2, **ALL),
    "adapter": AdapterArgs(adapter_prompt_length=3, adapter_start_layer=1),
    "adapter_v2": AdapterArgs(adapter_prompt_length=3, adapter_start_layer=0),
    "full": FullArgs(),
}
STD = {"lora": 0.2, "adapter": 2.0, "adapter_v2": 0.2}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


def quantized_model(kind, base):
    """A model with quantized weights; skipped where this machine does not multiply them."""
    if kind.startswith("bnb."):
        pytest.importorskip("bitsandbytes")
    for path in quantizable(base):
        base.set_submodule(path, quantized(base.get_submodule(path), kind))
    return base


def finetuned(base, method, seed=1):
    """A model with adapters whose values are not those of the start."""
    METHODS[method].inject(base, ARGS[method])
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in base.named_parameters():
            if p.requires_grad and method != "full":
                p.add_(0.2 * torch.randn_like(p)) if name.endswith("adapter_scale") else p.normal_(std=STD[method])
    return base.eval()


def alone(model, prompts=PROMPTS):
    """Greedy tokens of each prompt by itself, by the model's own modules and another cache."""
    found = []
    for prompt in prompts:
        columns = generate_batch(model, [prompt], N, temperature=0, compile=False)
        found.append([token for (token,) in columns])
    return found


def together(model, tokenizer, pack=False, prompts=PROMPTS, **options):
    options = {"max_rows": 3, "max_tokens": 200, "prefill_chunk": 16} | options
    engine = Engine(model, tokenizer, pack=pack, **options)
    answers = engine.complete([Request(p, N, GREEDY) for p in prompts])
    assert not [a.error for a in answers if a.error]
    return [[t.id for t in a.tokens] for a in answers]


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_quantized_weights(kind, tokenizer):
    model = quantized_model(kind, tiny("llama-gqa"))
    try:
        want = alone(model)
    except RuntimeError as e:
        pytest.skip(f"{kind} does not run on this CPU: {e}")
    if kind.startswith("bnb.int8"):  # LLM.int8 chooses its columns of 16 bits over all tokens of a pass
        assert [together(model, tokenizer, prompts=[p], prefill_chunk=512)[0] for p in PROMPTS] == want
        return
    assert together(model, tokenizer) == want
    if kind != "int8":  # whose packed products round activations less
        assert together(model, tokenizer, pack=True) == want


@pytest.mark.parametrize("kind", ["mixtral", "qwen3-moe"])
def test_packed_int8_weights_are_those_of_their_codes_in_mixtures_of_experts_too(kind, tokenizer):
    model = quantized_model("int8", tiny(kind))
    plain = copy.deepcopy(model)
    for path in quantizable(model):
        layer = model.get_submodule(path)
        linear = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        linear.weight.data, linear.bias = layer.dequantize().float(), layer.bias
        plain.set_submodule(path, linear)
    assert together(model, tokenizer, pack=True) == alone(plain) == together(plain, tokenizer)


@pytest.mark.parametrize("kind", ["llama-gqa", "gemma2", "mixtral"])
@pytest.mark.parametrize("method", METHODS)
def test_finetuned_runs(method, kind, tokenizer):
    base = tiny(kind)
    before = alone(base)
    model = finetuned(base, method)
    want = alone(model)
    assert (want != before) == (method != "full")
    assert together(model, tokenizer) == together(model, tokenizer, pack=True) == want


@pytest.mark.parametrize("quantization", ["int8", "bnb.nf4"])
@pytest.mark.parametrize("kind", ["llama-gqa", "mixtral"])
def test_lora_runs_over_one_quantized_base(quantization, kind, tokenizer):
    base = quantized_model(quantization, tiny(kind))
    models = {name: finetuned(copy.deepcopy(base), "lora", seed) for seed, name in enumerate(("a", "b"), 3)}
    runs = {
        name: SharedRun(run_of("lora"), updates_of(base, ARGS["lora"], trained_parameters(model), name))
        for name, model in models.items()
    }
    engine = Engine(base, tokenizer, runs=runs, max_rows=5, max_tokens=400, prefill_chunk=16, pack=False)
    names = [None, "a", "b"]
    requests = [Request(p, N, GREEDY, run=name) for p in PROMPTS for name in names]
    found = [[t.id for t in a.tokens] for a in engine.complete(requests)]
    for i, name in enumerate(names):
        assert found[i :: len(names)] == alone(models.get(name, base)), name
    assert len({tuple(ids) for ids in found}) > 8


@pytest.mark.parametrize("kind", ["llama-gqa", "mixtral", "gemma2"])
@pytest.mark.parametrize("method", [None, "lora", "adapter"])
def test_under_autocast_log_probabilities_are_the_models_own_and_keys_are_in_16_bits(method, kind, tokenizer):
    model = tiny(kind)
    model = finetuned(model, method) if method else model

    def autocast():
        return torch.autocast("cpu", torch.bfloat16)

    engine = Engine(model, tokenizer, max_rows=3, max_tokens=200, prefill_chunk=16, autocast=autocast)
    assert engine.pool.k[0].dtype == torch.bfloat16
    answers = engine.complete([Request(p, 0, prompt_logprobs=0) for p in PROMPTS])
    with torch.inference_mode(), autocast():
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            plain = model(torch.tensor([prompt]))[0].float().log_softmax(-1)
            want = plain[range(len(prompt) - 1), prompt[1:]]
            got = torch.tensor([s.logprob for s in answer.prompt[1:]])
            assert ((got - want).abs() < 0.05 + 0.02 * want.abs()).all()
