"""Tiny real checkpoints, made the way they come from the hub, and the scripts run as a user runs them."""

import copy
import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from script_processes import ROOT, begin_test, share_starts

TESTS = Path(__file__).parent
NEEDS = {path.name: "lm_eval" for path in TESTS.glob("test_evaluation*.py")}
NEEDS |= {path.name: "fastapi" for path in TESTS.glob("test_serve*.py")}
NEEDS |= {path.name: "detect_secrets" for path in TESTS.glob("test_submission*.py")}
NEEDS |= {"test_data_and_files.py": "jsonargparse"}
NEEDS |= {p.name: "hypothesis" for p in TESTS.glob("test_*.py") if "\nfrom hypothesis" in p.read_text(encoding="utf-8")}
collect_ignore = [file for file, package in NEEDS.items() if find_spec(package) is None]
"""Files that import what a machine with a GPU may lack, where `pytest -m gpu` is all that is wanted."""

SHARED = ROOT.parent / "shared" / "data"
"""Tokenizers and data sets that are not part of the project; tests that use them skip where they are absent."""


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 4.0, 8.0, 16.0]}
MINI = {
    "original_max_position_embeddings": 30,
    "rope_parameters": {"partial_rotary_factor": 0.75, "rope_theta": 10000.0},
}
MINI["rope_parameters"] |= {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 4.0, 8.0]}
FALCON_40B = {"new_decoder_architecture": True, "num_kv_heads": 2}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
WINDOWED = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
EVERY_OTHER = {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 8}
SLIDING_FULL = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
SCALED = {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_local_base_freq": 5000.0}
SHARPER = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SHARPER |= {"attention_factor": 1.138629436111989}  # what YaRN would take anyway
SHARED_KEYS = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8, "global_head_dim": 16}
SHARED_KEYS |= {"num_kv_shared_layers": 2, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 8}
SHARED_KEYS |= {"vocab_size_per_layer_input": 320, "final_logit_softcapping": 30.0, "num_hidden_layers": 4}
KEYS_AS_VALUES = {**SLIDING_FULL, "global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True}
KEYS_AS_VALUES |= {"hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2}
KEYS_AS_VALUES |= {"moe_intermediate_size": 24}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
MULTIPLIERS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.5}
MULTIPLIERS |= {"attention_multiplier": 0.3}
ALPHA = {"rope_type": "dynamic", "alpha": 50.0, "rope_theta": 10000.0, "factor": 1.0}
OSS_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
CONVS = {"layer_types": ["conv", "full_attention"], "conv_bias": True, "block_multiple_of": 8}
DELTAS = {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4}
DELTAS |= {"linear_key_head_dim": 8, "linear_value_head_dim": 16}
SHARED_EXPERT = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED_EXPERT |= {"shared_expert_intermediate_size": 40}
NEXT = DELTAS | SHARED_EXPERT | {"mlp_only_layers": [1]}
GROUPED = {"n_routed_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "n_shared_experts": 2}
GROUPED |= {"n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5, "use_qk_norm": True, "attention_bias": True}
MAMBAS = {"layer_types": ["linear_attention", "full_attention"], "mamba_n_heads": 8, "mamba_d_head": "auto"}
MAMBAS |= {"mamba_d_state": 16, "mamba_n_groups": 2, "num_local_experts": 0, "shared_intermediate_size": 40}
SMALL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "position_embedding_type": "rope"}
HYBRID = {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 16, "n_groups": 2, "num_key_value_heads": 2}
HYBRID |= {"head_dim": 16, "time_step_min": 0.6, "pad_token_id": None, "layers_block_type": ["linear_attention", "mlp"]}
HYBRID["layers_block_type"] += ["full_attention", "mlp"]
PLAIN_EXPERTS = {"n_routed_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "n_group": 3}
PLAIN_EXPERTS |= {"topk_group": 2, "routed_scaling_factor": 2.5, "moe_shared_expert_intermediate_size": 40}
PLAIN_EXPERTS |= {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "moe_latent_size": 16}
SCOUT = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size_mlp": 40, "moe_layers": [0]}
SCOUT |= {"no_rope_layers": [1, 0], "pad_token_id": None}
SHAPES: dict[str, tuple[str, dict]] = {  # kind -> class of transformers' configuration, and what it sets
    "llama": ("LlamaConfig", {}),
    "llama-gqa": ("LlamaConfig", {"num_key_value_heads": 2}),
    "llama-mqa": ("LlamaConfig", {"num_key_value_heads": 1}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-linear": ("LlamaConfig", {"rope_scaling": {"type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "llama-3": ("LlamaConfig", {"num_key_value_heads": 2, "rope_scaling": LLAMA3, "rope_theta": 500000.0}),
    "llama-long": ("LlamaConfig", {"rope_scaling": {**LONG, "original_max_position_embeddings": 30, "factor": 4.0}}),
    "llama-biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("LlamaConfig", {"head_dim": 16}),
    "neox": ("GPTNeoXConfig", {}),
    "neox-sequential": ("GPTNeoXConfig", {"use_parallel_residual": False}),
    "neox-full-rotary": ("GPTNeoXConfig", {"rotary_pct": 1.0}),
    "falcon": ("FalconConfig", {"tie_word_embeddings": False}),
    "falcon-mha": ("FalconConfig", {"multi_query": False}),
    "falcon-40b": ("FalconConfig", FALCON_40B),
    "falcon-11b": ("FalconConfig", FALCON_40B | {"num_ln_in_parallel_attn": 1}),
    "mistral": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": 8, "head_dim": 16}),
    "mistral-full": ("MistralConfig", {"num_key_value_heads": 1, "sliding_window": None}),
    "mixtral": ("MixtralConfig", {"num_key_value_heads": 2, "num_local_experts": 4}),
    "phi": ("PhiConfig", {}),
    "phi3": ("Phi3Config", {"num_key_value_heads": 2, "sliding_window": 8, "pad_token_id": 0}),
    "phi3-long": ("Phi3Config", {"rope_scaling": LONG, "original_max_position_embeddings": 30, "pad_token_id": 0}),
    "phi3-short": ("Phi3Config", {"rope_scaling": LONG, "original_max_position_embeddings": 64, "pad_token_id": 0}),
    "phi4-mini": ("Phi3Config", {"num_key_value_heads": 2, "tie_word_embeddings": True, "pad_token_id": 0, **MINI}),
    "gemma": ("GemmaConfig", {"num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": ("Gemma2Config", {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8}),
    "gemma4": ("Gemma4TextConfig", {"num_key_value_heads": 2, "head_dim": 8, **SHARED_KEYS}),
    "gemma4-moe": ("Gemma4TextConfig", {"num_key_value_heads": 2, "head_dim": 8, **KEYS_AS_VALUES}),
    "gemma3": ("Gemma3TextConfig", {"num_key_value_heads": 2, "head_dim": 16, **SLIDING_FULL, **SCALED}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2, **WINDOWED}),
    "qwen2-yarn": ("Qwen2Config", {"rope_scaling": YARN}),
    "qwen3": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3Config", {"num_key_value_heads": 2, "pad_token_id": None, **EVERY_OTHER}),
    "qwen3-moe": ("Qwen3MoeConfig", {"num_key_value_heads": 2, "head_dim": 16, **EXPERTS}),
    "olmo2": ("Olmo2Config", {"num_key_value_heads": 2, "pad_token_id": None}),
    "olmo3": ("Olmo3Config", {"pad_token_id": None, "num_key_value_heads": 2, **SLIDING_FULL, "rope_scaling": SHARPER}),
    "granite": ("GraniteConfig", {"num_key_value_heads": 2, "tie_word_embeddings": True, **MULTIPLIERS}),
    "seed-oss": ("SeedOssConfig", {"num_key_value_heads": 2, "head_dim": 16, "pad_token_id": None}),
    "exaone4": ("Exaone4Config", {"num_key_value_heads": 2, **SLIDING_FULL}),
    "glm4": ("Glm4Config", {"num_key_value_heads": 2, "head_dim": 16, "pad_token_id": None}),
    "hunyuan": ("HunYuanDenseV1Config", {"num_key_value_heads": 2, "head_dim": 16, "rope_scaling": ALPHA}),
    "nemotron": ("NemotronConfig", {"num_key_value_heads": 2, "head_dim": 16}),
    "apertus": ("ApertusConfig", {"num_key_value_heads": 2, "rope_scaling": LLAMA3}),
    "lfm2": ("Lfm2Config", {"num_key_value_heads": 2, "pad_token_id": None, **CONVS}),
    "qwen3.5": ("Qwen3_5TextConfig", {"num_key_value_heads": 2, "head_dim": 16, **DELTAS}),
    "qwen3-next": ("Qwen3NextConfig", {"num_key_value_heads": 2, "head_dim": 16, **NEXT}),
    "qwen3.5-moe": ("Qwen3_5MoeTextConfig", {"num_key_value_heads": 2, "head_dim": 16, **DELTAS, **SHARED_EXPERT}),
    "glm4-moe": ("Glm4MoeConfig", {"num_key_value_heads": 2, "head_dim": 16, **GROUPED}),
    "granite4": ("GraniteMoeHybridConfig", {"num_key_value_heads": 2, **MULTIPLIERS, **MAMBAS}),
    "granite4-moe": ("GraniteMoeHybridConfig", {"num_key_value_heads": 2, **MAMBAS, **SMALL_EXPERTS}),
    "nemotron-h": ("NemotronHConfig", HYBRID),
    "nemotron-h-moe": ("NemotronHConfig", HYBRID | PLAIN_EXPERTS),
    "llama4": ("Llama4TextConfig", {"num_key_value_heads": 2, "head_dim": 16, **SCOUT}),
    "gpt-oss": ("GptOssConfig", {"num_key_value_heads": 2, "head_dim": 16, **SLIDING_FULL, **OSS_EXPERTS}),
    "stablelm": ("StableLmConfig", {"use_qkv_bias": True}),
    "stablelm-12b": ("StableLmConfig", {"num_key_value_heads": 2, "qk_layernorm": True, "use_parallel_residual": True}),
}
_NOT_WRITTEN = ("apertus", "glm4-moe", "gpt-oss", "granite4", "granite4-moe", "lfm2", "llama4", "qwen3-next")
_NOT_WRITTEN += ("qwen3.5", "qwen3.5-moe", "gemma4", "gemma4-moe", "nemotron-h", "nemotron-h-moe")
WRITTEN = [kind for kind in SHAPES if kind not in _NOT_WRITTEN]
"""Kinds that we write as gguf; others are refused by name."""
OF_CLASSES = list({name: kind for kind, (name, _) in reversed(SHAPES.items())}.values())
"""The first kind of each class of transformers: enough for what a family's tables say of its config.json."""
ALL = {f"lora_{t}": True for t in ("query", "key", "value", "projection", "mlp", "per_layer", "head")}
"""Flags of LoRA on every layer."""
VARIANTS = {
    "plain": {},
    "rslora": {"lora_scaling": "rslora"},
    "dora": {"lora_dora": True},
    "pissa": {"lora_init": "pissa"},
    "all": {"lora_scaling": "rslora", "lora_dora": True, "lora_init": "pissa", "lora_plus_ratio": 4.0},
}
"""Name -> flags of LoRA."""


def tiny_hf_config(kind: str, **overrides):
    """The configuration of a tiny model of transformers with a vocabulary of 320, of one of SHAPES."""
    import transformers

    name, shape = SHAPES[kind]
    sizes = {
        "vocab_size": 320,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": 264,  # as in `write_tokenizer`
        "eos_token_id": 265,
    }
    heads = {} if name in ("GPTNeoXConfig", "FalconConfig") else {"num_key_value_heads": 4}
    hidden = {"FalconConfig": {}, "GPTNeoXConfig": {"intermediate_size": 64}}.get(name, {"intermediate_size": 48})
    return getattr(transformers, name)(**sizes | heads | hidden | copy.deepcopy(shape) | overrides)


def tiny_hf(kind: str, **overrides):
    """A random model of transformers, see `tiny_hf_config`."""
    import transformers

    config = tiny_hf_config(kind, **overrides)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, p in model.named_parameters():  # fresh norms and biases are 1 and 0: move them, or mistakes stay hidden
        if p.dim() == 1:
            torch.nn.init.normal_(p, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
        else:
            torch.nn.init.normal_(p, std=0.3)
    for name, x in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            torch.nn.init.normal_(x, std=0.2)
        if name.endswith("layer_scalar"):
            torch.nn.init.constant_(x, 0.7)
    return model


def ours_of(theirs, kind):
    """Our model with the weights of one of transformers."""
    from lit_gpt.convert.configs import config_from_hf
    from lit_gpt.convert.names import from_hf
    from lit_gpt.model import GPT

    config = config_from_hf({**theirs.config.to_dict(), "architectures": [type(theirs).__name__]}, kind, "config.json")
    state = theirs.state_dict()
    model = GPT(config).eval()
    model.load_state_dict(from_hf(config, state, state.__getitem__))
    return model


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer.json with <s>, </s>, and a few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("a", "n"), ("an", "d"), ("i", "n"), ("in", "g"), ("Ġ", "the"), ("e", "r")]
    tokens = [*alphabet, *(a + b for a, b in merges)]
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def assert_one_line_error(process: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The process failed and said so in one line that has all of `parts`."""
    assert process.returncode != 0, process.stdout
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    assert len(lines) >= 1 and lines[-1].startswith("error: "), process.stderr
    assert "Traceback" not in process.stderr
    for part in parts:
        assert part in lines[-1], lines[-1]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    begin_test()


@pytest.fixture(scope="session", autouse=True)
def starts(tmp_path_factory):
    """Each script is started from the very beginning once in a run of the tests, and not once by each worker."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        share_starts(tmp_path_factory.getbasetemp().parent / "started")


@pytest.fixture(scope="session")
def downloaded(tmp_path_factory) -> dict[str, Path]:
    """Folders as scripts/download.py leaves them: safetensors, config.json, tokenizer."""
    folders = {}
    for kind in ("llama", "llama-gqa", "llama-tied", "neox"):
        folder = tmp_path_factory.mktemp("hub") / f"tiny-{kind}"
        tiny_hf(kind).save_pretrained(folder)
        write_tokenizer(folder)
        folders[kind] = folder
    return folders


@pytest.fixture(scope="session")
def checkpoint(downloaded) -> Path:
    """A converted checkpoint, Llama-shaped with GQA."""
    from lit_gpt.args.folders import CONFIG, WEIGHTS
    from lit_gpt.convert.configs import config_from_hf
    from lit_gpt.convert.names import from_hf
    from lit_gpt.convert.readers import open_source
    from lit_gpt.files import save_state

    folder = downloaded["llama-gqa"]
    source = open_source(folder)
    config = config_from_hf(source.hf_config, "tiny", "config.json")
    save_state(from_hf(config, source.names, source.get), folder / WEIGHTS)
    config.to_json(folder / CONFIG)
    return folder


def rewrite_gguf(path, values_of):
    """Give a gguf of a llama other values: `values_of` takes what the reader has of a tensor, returns (bytes, type)."""
    import gguf

    written = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_name("again.gguf"), "llama")
    for key, field in written.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            types = field.types
            writer.add_key_value(key, field.contents(), types[0], types[1] if len(types) > 1 else None)
    for t in written.tensors:
        data, kind = values_of(t)
        writer.add_tensor(t.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_name("again.gguf").replace(path)


@pytest.fixture
def unpacked(monkeypatch):
    """The engine calls the model's own modules, on which hooks see what passes, and not copies with packed weights."""
    monkeypatch.setattr("lit_gpt.generation.engine.speeds_up", lambda model: False)


@pytest.fixture
def dirty_memory():
    """New memory holds nan, as it may in a process that has run for long: nobody may read what nobody wrote."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills it, see `fill_uninitialized_memory`
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)
