"""A gguf file seen as the Hugging Face checkpoint it was made from: configuration, tensors, tokenizer.

Needs the package `gguf` (`pip install -e ".[gguf]"`). The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.files import Spec

CONFIG = {  # metadata key below `llama.` -> key of config.json
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
WITHOUT_EFFECT = ("rope.dimension_count", "attention.value_length")  # follow from the others; checked by tensor shapes
TENSORS = {  # tensor in the file -> tensor of LlamaForCausalLM
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PRE_TOKENIZERS = {"smollm": True, "gpt-2": False, "default": False}  # tokenizer.ggml.pre -> digits one by one?


def open_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Callable[[], Tensor]], dict[str, Spec]]:
    """config.json's values and, by Hugging Face name, functions that read and dequantize one tensor, and its shape.

    Raises:
        UserError: damaged file, or an architecture or field that we do not read.
    """
    reader = read(path)
    metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer")}
    if (kind := metadata["general.architecture"]) != "llama":
        raise UserError(f"{path}: gguf files of architecture {kind!r} are not read, only 'llama'")
    hf: dict[str, Any] = {"architectures": ["LlamaForCausalLM"]}
    for name, value in metadata.items():
        key = name.removeprefix("llama.")
        if key in CONFIG:
            hf[CONFIG[key]] = value
        elif name.startswith("llama.") and key not in WITHOUT_EFFECT:
            raise UserError(f"{path}: {name}={value!r} is not a field this toolkit knows")
    tensors = {hf_name(t.name, path): t for t in reader.tensors if t.name != "rope_freqs.weight"}
    hf["tie_word_embeddings"] = "lm_head.weight" not in tensors
    # a float32 such as 1e-5 comes back with the digits of a float64; config.json has the short ones
    hf = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in hf.items()}
    heads = {"q_proj": hf["num_attention_heads"], "k_proj": hf.get("num_key_value_heads", hf["num_attention_heads"])}
    read_one = {
        name: partial(dequantize, tensor, next((heads[k] for k in heads if k in name), None))
        for name, tensor in tensors.items()
    }
    specs = {name: Spec(tuple(map(int, reversed(t.shape))), torch.float32) for name, t in tensors.items()}
    return hf, read_one, specs


def read(path: Path) -> Any:
    """The file as a `gguf.GGUFReader`. Raises: UserError if it is damaged or the package is missing."""
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as e:
        raise UserError(f'{path} needs the package gguf; run: pip install "gguf>=0.10"') from e
    try:
        reader = GGUFReader(path)
        end = max(t.data_offset + t.n_bytes for t in reader.tensors)
    except (ValueError, IndexError, KeyError, OverflowError) as e:
        raise UserError(f"{path} is truncated or damaged ({e}); get it again") from e
    if end > path.stat().st_size:
        raise UserError(f"{path} is truncated: {path.stat().st_size:,} bytes instead of {end:,}; get it again")
    return reader


def hf_name(name: str, path: Path) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`. Raises: UserError for an unknown tensor."""
    layer = re.match(r"blk\.(\d+)\.", name)
    module, _, parameter = name[layer.end() if layer else 0 :].rpartition(".")
    if module not in TENSORS:
        raise UserError(f"{path}: tensor {name!r} has no place in a llama model")
    return (f"model.layers.{layer[1]}." if layer else "") + f"{TENSORS[module]}.{parameter}"


def dequantize(tensor: Any, heads: int | None) -> Tensor:
    """The values in fp32, shape as in Hugging Face's file.

    Args:
        tensor: an entry of `GGUFReader.tensors`.
        heads: for q and k, how many heads it has: llama.cpp rotates neighbouring channels, Hugging Face the two halves
            of a head, so that the rows of each head are stored in another order.
    """
    from gguf import dequantize as values

    x = torch.from_numpy(np.array(values(tensor.data, tensor.tensor_type), dtype=np.float32))
    if heads is None:
        return x
    return x.view(heads, -1, 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def write_tokenizer(path: Path, folder: Path) -> None:
    """Write the file's tokenizer as tokenizer.json and tokenizer_config.json into `folder`.

    Raises:
        UserError: a kind of tokenizer that we do not rebuild.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    prefix = "tokenizer.ggml."
    fields = {n.removeprefix(prefix): f for n, f in read(path).fields.items() if n.startswith("tokenizer.")}

    def value(name: str, default: Any = None) -> Any:
        return fields[name].contents() if name in fields else default

    if value("model") != "gpt2" or value("pre", "default") not in PRE_TOKENIZERS:
        kind = f"{value('model')}/{value('pre', 'default')}"
        raise UserError(f"{path}: a tokenizer of kind {kind} is not rebuilt; put the model's tokenizer.json beside it")
    tokens = value("tokens")
    merges = [tuple(m.split(" ")) for m in value("merges")]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if PRE_TOKENIZERS[value("pre", "default")]:
        steps.insert(0, pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # of llama.cpp's token types: not text
    special = [t for t, kind in zip(tokens, value("token_type"), strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": value("add_bos_token", False),
    }
    for theirs, ours in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        if (token := value(f"{theirs}_token_id")) is not None:
            config[f"{ours}_token"] = tokens[token]
    if "tokenizer.chat_template" in fields:
        config["chat_template"] = fields["tokenizer.chat_template"].contents()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
