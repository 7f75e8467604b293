"""Our model computes what transformers computes, for every architecture; converting back gives the same bits."""

import pytest
import torch
from conftest import SHAPES, tiny_hf
from parts import DECODED, ONE_OF_EACH, TRACED, parts_of
from published import PUBLISHED, n_parameters

from lit_gpt.args import LoRAArgs
from lit_gpt.convert.configs import config_from_hf, config_to_hf
from lit_gpt.convert.names import from_hf, to_hf
from lit_gpt.convert.readers import open_source
from lit_gpt.errors import UserError
from lit_gpt.families import MODELS, config_for
from lit_gpt.generation.lockstep.batch import generate, generate_batch
from lit_gpt.methods import lora
from lit_gpt.model import GPT, KVCache

KINDS = list(SHAPES)
PLAIN = ("llama-gqa", "neox", "mistral", "mixtral", "gemma2", "smollm3", "gemma3")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Function of a kind that returns our model and theirs, by way of the files that transformers writes, made once."""
    pairs = {}

    def pair(kind):
        if kind not in pairs:
            folder = tmp_path_factory.mktemp("made")
            theirs = tiny_hf(kind)
            theirs.save_pretrained(folder)
            source = open_source(folder)
            config = config_from_hf(source.hf_config, kind, "config.json")
            ours = GPT(config).eval()
            ours.load_state_dict(from_hf(config, source.names, source.get))
            pairs[kind] = ours, theirs, source
        return pairs[kind]

    return pair


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_transformers(kind, made):
    ours, theirs, _ = made(kind)
    ids = torch.randint(0, 320, (2, 40), generator=torch.Generator().manual_seed(1))
    want, got = theirs(ids).logits, ours(ids)
    scale = max(1.0, float(want.detach().abs().max()))  # of logits that run into the hundreds, fp32 keeps five digits
    torch.testing.assert_close(got / scale, want / scale, rtol=1e-5, atol=1e-5)
    want.square().mean().backward(), got.square().mean().backward()
    ours_grad = ours.transformer.wte.weight.grad
    theirs_grad = theirs.get_input_embeddings().weight.grad
    torch.testing.assert_close(ours_grad / scale**2, theirs_grad / scale**2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_configuration_come_back_as_they_were(kind, made):
    ours, _, source = made(kind)
    back = to_hf(ours.config, ours.state_dict())
    aliases = {"lm_head.weight": "embed_out.weight"} if kind.startswith("neox") else {}
    stored = {aliases.get(n, n): source.get(n) for n in source.names}
    assert set(stored) - set(back) <= ({"lm_head.weight"} if ours.config.tie_embeddings else set())
    for name, x in back.items():
        assert torch.equal(x, stored[name]), name
    again = config_from_hf(config_to_hf(ours.config), kind, "config.json")
    assert again == ours.config


def test_a_few_kinds_have_every_part_that_any_has(made):
    """So that what holds for each part is shown by them; see tests/parts.py."""
    parts = {kind: parts_of(made(kind)[0].config) for kind in KINDS}
    missing = set().union(*parts.values()) - set().union(*(parts[kind] for kind in ONE_OF_EACH))
    assert not missing, f"tests/parts.py: no kind of ONE_OF_EACH has {missing}"
    compiled = (parts[kind] for kind in DECODED if kind != "mixtral")
    missing = set().union(*compiled) - set().union(*(parts[kind] for kind in TRACED))
    assert not missing, f"tests/parts.py: no kind of TRACED has {missing}"


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@torch.no_grad()
def test_the_cache_changes_nothing(kind, made):
    ours, _, _ = made(kind)
    ids = torch.randint(0, 320, (1, 20), generator=torch.Generator().manual_seed(1))
    want, cache = ours(ids), KVCache(ours, 1, 20)
    pieces = [ours(ids[:, :7], torch.arange(7), cache)]
    pieces += [ours(ids[:, i : i + 1], torch.tensor([i]), cache) for i in range(7, 20)]
    scale = max(1.0, float(want.abs().max()))
    torch.testing.assert_close(torch.cat(pieces, 1) / scale, want / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [*PLAIN, "hunyuan", "gpt-oss", "lfm2", "qwen3.5", "gemma4", "nemotron-h-moe"])
@torch.no_grad()
def test_greedy_generation_is_the_argmax_without_a_cache_and_rows_do_not_mix(kind, made):
    ours, _, _ = made(kind)
    prompts = [[5, 9, 200], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9]]
    columns = list(generate_batch(ours, prompts, 12, temperature=0))
    for row, prompt in enumerate(prompts):
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(ours(torch.tensor([ids]))[0, -1].argmax()))
        assert [c[row] for c in columns] == ids[len(prompt) :]
        assert list(generate(ours, prompt, 12, temperature=0)) == ids[len(prompt) :]
        stop = ids[len(prompt) + 5]
        until = ids[len(prompt) :].index(stop)
        assert list(generate(ours, prompt, 12, temperature=0, stop_ids={stop})) == ids[len(prompt) :][:until]


def test_generation_stops_where_the_model_is_full(made):
    ours, _, _ = made("llama")
    assert len(list(generate(ours, [1] * 504, 50, temperature=0))) == 8
    with pytest.raises(UserError, match="512"):
        list(generate(ours, [1] * 512, 5))


def test_positions_stay_apart_in_16_bits(made):
    """In bf16 positions above 256 would round to each other; Fabric builds models under that default dtype."""
    ours, _, _ = made("llama")
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = GPT(ours.config)
    finally:
        torch.set_default_dtype(torch.float32)
    positions = torch.arange(512)
    for got, want in zip(model.rope(positions, 512), ours.rope(positions, 512), strict=True):
        assert got.dtype == torch.float32 and torch.equal(got, want)


COUNTS = {  # of models that came since, as published; tied heads counted once
    "Meta-Llama-3-8B": 8_030_261_248,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-72B": 72_706_203_648,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Mistral-Nemo-Base-2407": 12_247_782_400,
    "Mixtral-8x22B-v0.1": 140_620_634_112,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b-pt": 999_885_952,
    "Phi-3-mini-4k-instruct": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "OLMo-2-1124-7B": 7_298_617_344,
    "Olmo-3-1025-7B": 7_298_011_136,
    "stablelm-2-1_6b": 1_644_515_328,
    "stablelm-2-12b": 12_143_185_920,
    "Falcon3-1B-Base": 1_669_408_768,
    "Falcon3-7B-Base": 7_455_550_464,
    "SmolLM2-135M-Instruct": 134_515_008,
    "SmolLM3-3B": 3_075_098_624,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name):
    assert n_parameters(config_for(name)) == COUNTS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_model_of_lit_gpt_is_here_with_its_counts(name):
    row = PUBLISHED[name]
    config = config_for(row["hf_repo"])
    assert config == config_for(name)
    everything = {f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp", "head")}
    tied = config.padded_vocab_size * config.n_embd if config.tie_embeddings else 0  # Lit-GPT had no tied heads
    assert n_parameters(config) + tied == int(row["parameters"])
    for column, args in (("lora_query_value", LoRAArgs()), ("lora_all", LoRAArgs(**everything))):
        trained = n_parameters(config, lora.inject, args)
        if name.startswith("Gemma-7b"):  # whose heads have more channels than n_embd, which Lit-GPT's LoRA overlooked
            wider = config.n_head * config.head_size - config.n_embd
            trained -= config.n_layer * args.lora_r * wider * {"lora_query_value": 2, "lora_all": 3}[column]
        assert trained == int(row[column])


@pytest.mark.parametrize("name", MODELS)
def test_every_model_we_list_has_a_configuration(name):
    assert config_for(MODELS[name]["hf_repo"]) == config_for(name)


def test_an_unknown_name_shows_close_matches():
    with pytest.raises(UserError, match="pythia-160m"):
        config_for("EleutherAI/pythia-165m")


@pytest.mark.parametrize("kind", ["mixtral", "glm4-moe", "qwen3.5-moe", "granite4-moe", "nemotron-h"])
def test_experts_that_a_file_has_in_one_tensor_are_read_and_written_too(kind, made):
    """As a loaded model of transformers has them; of Qwen 3.5, files of both kinds are about."""
    ours, theirs, _ = made(kind)
    fused = theirs.state_dict()
    read = from_hf(ours.config, fused, fused.__getitem__)
    assert all(torch.equal(x, read[name]) for name, x in ours.state_dict().items())
    back = to_hf(ours.config, read, fused=True)
    assert back.keys() == fused.keys() and all(torch.equal(x, fused[name]) for name, x in back.items())
