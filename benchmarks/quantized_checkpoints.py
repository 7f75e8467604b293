"""Compares quantized checkpoints as they are read here with what the libraries that wrote them make of them.

python benchmarks/quantized_checkpoints.py --folder /tmp/quantized

Tiny random models are quantized by bitsandbytes, compressed-tensors and gptqmodel, or filled with random codes for the
formats that are written on a GPU only (FP8, MXFP4), and are then loaded by transformers. A library that is not
installed is left out, and said so. Prints the largest difference of a weight for each format.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lit_gpt.convert.readers import open_source

_SIZES = {"hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES |= {"num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 64}
Weights = dict[str, Tensor]
"""Weights as a library dequantizes them, by their names in the checkpoint."""


def _llama(dtype: torch.dtype = torch.bfloat16) -> Any:
    transformers: Any = import_module("transformers")

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SIZES)).to(dtype).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    return model


def _bitsandbytes(folder: Path, **settings: Any) -> Weights:
    """Returns the weights by bitsandbytes' functions, in fp32; before any forward, which may round the scales."""
    F: Any = import_module("bitsandbytes.functional")
    transformers: Any = import_module("transformers")

    _llama().save_pretrained(folder / "plain")
    config = transformers.BitsAndBytesConfig(**settings)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "plain", dtype=torch.bfloat16, device_map="cpu", quantization_config=config
    )
    model.save_pretrained(folder)
    found = {}
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            state = module.weight.quant_state
            state.dtype = torch.float32
            found[f"{name}.weight"] = F.dequantize_4bit(module.weight.data.view(torch.uint8), state)
        elif type(module).__name__ == "Linear8bitLt":
            codes = module.weight.data if module.weight.CB is None else module.weight.CB
            found[f"{name}.weight"] = F.int8_vectorwise_dequant(codes, module.weight.SCB)
    return found


def _compressed(folder: Path, groups: list[dict[str, Any]]) -> Weights:
    """Returns the weights by compressed-tensors' decompression.

    Args:
        groups: the settings of the weights, each for a part of the layers.
    """
    quantization: Any = import_module("compressed_tensors.quantization")
    calculate_qparams: Any = import_module("compressed_tensors.quantization.utils.helpers").calculate_qparams

    targets = [["re:.*self_attn.*"], ["re:.*mlp.*"]] if len(groups) > 1 else [["Linear"]]
    model = _llama()
    config = {f"group_{i}": {"targets": t, "weights": g} for i, (t, g) in enumerate(zip(targets, groups, strict=True))}
    made = quantization.QuantizationConfig(config_groups=config, ignore=["lm_head"])
    quantization.apply_quantization_config(model, made)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        w, args = module.weight.detach().float(), scheme.weights
        rows, columns = {"tensor": w.shape, "channel": (1, w.size(1)), "group": (1, args.group_size or 1)}.get(
            args.strategy, tuple(args.block_structure or ())
        )
        padded = nn.functional.pad(w, (0, -w.size(1) % columns, 0, -w.size(0) % rows))
        blocks = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))  # (., rows, ., columns)
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
        scale, zero = calculate_qparams(low, high, args)
        module.weight_scale.data = scale.to(torch.bfloat16).view(module.weight_scale.shape)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype).view(module.weight_scale.shape)
    compressor: Any = import_module("compressed_tensors.compressors").ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))
    compressor.decompress_model(model)
    chosen = {name for name, m in model.named_modules() if hasattr(m, "quantization_scheme")}
    return {f"{name}.weight": model.get_submodule(name).weight.detach().clone() for name in chosen}


def _by_gptqmodel(
    folder: Path, method: str, sym: bool, unsorted: bool = False, form: str = "gptq", bits: int = 4
) -> Weights:
    """Returns the weights by gptqmodel's layers, whose packing wrote the checkpoint; the zeros are any if not `sym`."""
    name_of = {"gptq": ("torch", "TorchLinear"), "awq": ("torch_awq", "AwqTorchLinear")}[method]
    layer_class: Any = getattr(import_module(f"gptqmodel.nn_modules.qlinear.{name_of[0]}"), name_of[1])
    dequantize_gemm: Any = import_module("gptqmodel.quantization.awq.utils.packing_utils").dequantize_gemm
    as_version_1: Any = import_module("gptqmodel.utils.model").convert_gptq_v2_to_v1_format_module
    settings_of: Any = import_module("gptqmodel.quantization.config").QuantizeConfig

    group = 32
    model = _llama(torch.float16)
    state, found = {}, {}
    for name, linear in model.named_modules():
        if not isinstance(linear, nn.Linear) or name == "lm_head":
            state |= {f"{name}.{n}": p.detach().clone() for n, p in linear.named_parameters(recurse=False)}
            continue
        n_rows, n_columns = linear.weight.shape
        g_idx = torch.arange(n_columns) // group
        g_idx = g_idx[torch.randperm(n_columns)] if unsorted else g_idx
        scales = torch.rand(n_rows, n_columns // group) * 0.02 + 0.01
        zeros = torch.full_like(scales, 8.0) if sym else torch.randint(0, 2**bits, scales.shape).float()
        linear.float()
        options = {"bits": bits, "group_size": group, "sym": sym, "desc_act": unsorted, "in_features": n_columns}
        layer = layer_class(**options, out_features=n_rows)
        if method == "awq":
            layer.pack(linear, scales, zeros, g_idx.int())
            w = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, bits, group)
        else:
            layer.pack_original(linear, scales, zeros, g_idx.int())  # `pack` compiles C++ first
            layer.post_init()
            w = layer.dequantize_weight()
            if form == "gptq":
                as_version_1(layer, settings_of(bits=bits, group_size=group))
            state[f"{name}.g_idx"] = layer.g_idx
        state |= {f"{name}.{n}": getattr(layer, n).clone() for n in ("qweight", "qzeros", "scales")}
        found[f"{name}.weight"] = w.t().contiguous()
    settings = {"quant_method": method, "bits": bits, "group_size": group, "desc_act": unsorted, "sym": sym}
    settings |= {"version": "gemm"} if method == "awq" else {"checkpoint_format": form}
    _write(folder, model.config, state, settings)
    return found


def _fp8(folder: Path) -> Weights:
    """Returns the weights by transformers' loader, which dequantizes on a CPU; 128 divides all sizes, since it takes
    blocks of rows / rows of scales where it does not."""
    model = _llama()
    state = {}
    for name, p in model.state_dict().items():
        if not name.endswith("proj.weight"):
            state[name] = p.clone()
            continue
        blocks = p.float().unflatten(1, (-1, 128)).unflatten(0, (-1, 128))
        scale = blocks.abs().amax((1, 3), keepdim=True) / 448
        state[name] = (blocks / scale).reshape(p.shape).to(torch.float8_e4m3fn)
        state[f"{name}_scale_inv"] = scale.view(blocks.size(0), blocks.size(2))
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3"}
    return _by_transformers(folder, model.config, state, settings=settings, ending="proj.weight")


def _mxfp4(folder: Path) -> Weights:
    """Returns the experts by transformers' loader of gpt-oss, from random codes and exponents, subnormal ones too."""
    transformers: Any = import_module("transformers")

    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        **(_SIZES | {"hidden_size": 64, "intermediate_size": 96}), num_local_experts=4, head_dim=16
    )
    state = {}
    for name, p in transformers.GptOssForCausalLM(config).to(torch.bfloat16).state_dict().items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            state[name] = p.clone()
            continue
        n_experts, n_in, n_out = p.shape
        state[f"{name}_blocks"] = torch.randint(0, 256, (n_experts, n_out, n_in // 32, 16), dtype=torch.uint8)
        exponents = torch.randint(110, 130, (n_experts, n_out, n_in // 32), dtype=torch.uint8)
        state[f"{name}_scales"] = torch.where(torch.rand(exponents.shape) < 0.1, 0, exponents)
    settings = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
    }
    return _by_transformers(folder, config, state, settings=settings, ending=("gate_up_proj", "experts.down_proj"))


def _by_transformers(
    folder: Path, config: Any, state: Weights, settings: dict[str, Any], ending: str | tuple[str, ...]
) -> Weights:
    """Writes a checkpoint and returns what transformers loads of the weights with an ending."""
    transformers: Any = import_module("transformers")

    _write(folder, config, state, settings)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cpu")
    return {name: p for name, p in model.state_dict().items() if name.endswith(ending)}


def _write(folder: Path, config: Any, state: Weights, settings: dict[str, Any]) -> None:
    config.save_pretrained(folder)
    path = folder / "config.json"
    stated = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**stated, "quantization_config": settings}), encoding="utf-8")
    save_file(state, folder / "model.safetensors", {"format": "pt"})


_FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
_ROWS = {**_FLOAT8, "strategy": "channel"}
_BLOCKS = {**_FLOAT8, "strategy": "block", "block_structure": [128, 128]}
_INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
_W4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
_NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
_BNB, _CT, _GPTQ = "bitsandbytes", "compressed_tensors", "gptqmodel"
# fmt: off
_FORMATS: dict[str, tuple[str, Callable[[Path], Weights]]] = {
    "bitsandbytes nf4, double": (_BNB, partial(_bitsandbytes, **_NF4, bnb_4bit_use_double_quant=True)),
    "bitsandbytes fp4": (_BNB, partial(_bitsandbytes, load_in_4bit=True, bnb_4bit_quant_type="fp4")),
    "bitsandbytes nf4, stored as bf16": (_BNB, partial(_bitsandbytes, **_NF4, bnb_4bit_quant_storage=torch.bfloat16)),
    "bitsandbytes int8": (_BNB, partial(_bitsandbytes, load_in_8bit=True)),
    "FP8 in blocks": ("transformers", _fp8),
    "MXFP4 experts": ("transformers", _mxfp4),
    "compressed-tensors FP8 by row": (_CT, partial(_compressed, groups=[_ROWS])),
    "compressed-tensors FP8 by matrix": (_CT, partial(_compressed, groups=[{**_FLOAT8, "strategy": "tensor"}])),
    "compressed-tensors FP8 in blocks": (_CT, partial(_compressed, groups=[_BLOCKS])),
    "compressed-tensors INT8": (_CT, partial(_compressed, groups=[_INT8])),
    "compressed-tensors W4A16": (_CT, partial(_compressed, groups=[_W4])),
    "compressed-tensors W4A16, zeros": (_CT, partial(_compressed, groups=[{**_W4, "symmetric": False}])),
    "compressed-tensors W4A16 and FP8": (_CT, partial(_compressed, groups=[_W4, _BLOCKS])),
    "GPTQ": (_GPTQ, partial(_by_gptqmodel, method="gptq", sym=True)),
    "GPTQ, any zeros, unsorted": (_GPTQ, partial(_by_gptqmodel, method="gptq", sym=False, unsorted=True)),
    "GPTQ version 2": (_GPTQ, partial(_by_gptqmodel, method="gptq", sym=False, form="gptq_v2")),
    "GPTQ in 8 bits": (_GPTQ, partial(_by_gptqmodel, method="gptq", sym=False, bits=8)),
    "AWQ": (_GPTQ, partial(_by_gptqmodel, method="awq", sym=False)),
}
# fmt: on
"""Format -> the package that has it, and the function that writes a checkpoint and returns its weights."""


def _differences(folder: Path, want: Weights) -> Iterator[tuple[float, float]]:
    """Yields the largest difference and the largest value of each weight, in the dtype that the library returns."""
    source = open_source(folder, next(iter(want.values())).dtype)
    missing = want.keys() ^ source.quantized.keys()
    assert not missing, sorted(missing)[:3]
    for name, x in want.items():
        yield float((source.get(name).float() - x.float()).abs().max()), float(x.float().abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="a folder for the checkpoints, which is deleted")
    root = parser.parse_args().folder
    for name, (package, write) in _FORMATS.items():
        if find_spec(package) is None:
            print(f"{name:36} {package} is not installed")
            continue
        folder = root / "one"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        want = write(folder)
        size = sum(x.nbytes for x in load_file(folder / "model.safetensors").values())
        worst, largest = (max(x) for x in zip(*_differences(folder, want), strict=True))
        dtype = str(next(iter(want.values())).dtype).removeprefix("torch.")
        print(f"{name:36} {len(want):3} weights, {dtype}: {worst:.3g} of {largest:.3g} ({size:,} bytes)", flush=True)
    shutil.rmtree(root / "one", ignore_errors=True)


if __name__ == "__main__":
    main()
