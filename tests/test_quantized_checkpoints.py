"""Checkpoints that other tools have quantized, as input: what is read of them, kept of them, and refused.

Writers that are test dependencies (bitsandbytes, transformers) are the oracle; for the others the packing is written
down here once more, and benchmarks/quantized_checkpoints.py compares with the libraries themselves.
"""

import importlib.util
import json
import os

import pytest
import torch
from conftest import ROOT, tiny_hf, write_tokenizer
from safetensors.torch import load_file, save_file

from lit_gpt.args.folders import WEIGHTS
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.names import from_hf
from lit_gpt.convert.readers import open_source
from lit_gpt.errors import UserError
from lit_gpt.fabric import make_fabric
from lit_gpt.model import GPT

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
GROUP = 32


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def in_words(codes, bits=4):
    """Integers (n, m) in words of 32 bits, along the last dimension, the first in the lowest bits."""
    n = 32 // bits
    codes = torch.nn.functional.pad(codes.long(), (0, -codes.size(1) % n)).unflatten(1, (-1, n))
    return sum(codes[..., i] << bits * i for i in range(n)).to(torch.int32)


def grouped(x, columns=GROUP):
    return x.repeat_interleave(columns, 1)


def gptq(name, w, draw, less_one=True, unsorted=False):
    n_groups = w.size(1) // GROUP
    scale, zero = (torch.rand(w.size(0), n_groups, generator=draw) * 0.1).half(), draw_codes(draw, w.size(0), n_groups)
    codes = draw_codes(draw, *w.shape)
    order = torch.arange(w.size(1)) // GROUP
    order = order[torch.randperm(len(order), generator=draw)] if unsorted else order
    zeros = in_words(zero.t())
    parts = {"qweight": in_words(codes).t().contiguous(), "scales": scale.t().contiguous(), "g_idx": order.int()}
    parts["qzeros"] = zeros - 0x11111111 if less_one else zeros  # of whole words, which borrow
    return {f"{name}.{k}": x for k, x in parts.items()}, (codes - zero[:, order]) * scale.float()[:, order]


def draw_codes(draw, *shape, bits=4):
    return torch.randint(0, 2**bits, shape, generator=draw)


def awq(name, w, draw):
    n_groups = w.size(1) // GROUP
    scale, zero = (torch.rand(w.size(0), n_groups, generator=draw) * 0.1).half(), draw_codes(draw, w.size(0), n_groups)
    codes = draw_codes(draw, *w.shape)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    words = [in_words(x.t().unflatten(1, (-1, 8))[..., order].flatten(1)) for x in (codes, zero)]
    parts = {"qweight": words[0], "qzeros": words[1], "scales": scale.t().contiguous()}
    return {f"{name}.{k}": x for k, x in parts.items()}, (codes - grouped(zero)) * grouped(scale.float())


def packed(name, w, draw, bits=4, zeros=False, unsorted=False):
    scale = (torch.rand(w.size(0), w.size(1) // GROUP, generator=draw) * 0.1).bfloat16()
    zero = draw_codes(draw, *scale.shape, bits=bits) if zeros else torch.full(scale.shape, 2 ** (bits - 1))
    codes = draw_codes(draw, *w.shape, bits=bits)
    parts = {"weight_packed": in_words(codes, bits), "weight_scale": scale, "weight_shape": torch.tensor(w.shape)}
    if zeros:
        parts["weight_zero_point"] = in_words(zero.t(), bits).t().contiguous()
    order = torch.arange(w.size(1)) // GROUP
    if unsorted:
        order = order[torch.randperm(len(order), generator=draw)]
        parts["weight_g_idx"] = order.int()
    return {f"{name}.{k}": x for k, x in parts.items()}, (codes - zero[:, order]) * scale.float()[:, order]


def scaled(name, w, draw, dtype, rows, columns, suffix="weight_scale", scale_dtype=torch.float32):
    n = (-(-w.size(0) // rows), -(-w.size(1) // columns))
    scale = (torch.rand(n, generator=draw) * 0.01 + 0.01).to(scale_dtype)
    codes = (torch.rand(w.shape, generator=draw) * 200 - 100).to(dtype)
    each = scale.float().repeat_interleave(rows, 0).repeat_interleave(columns, 1)[: w.size(0), : w.size(1)]
    return {f"{name}.weight": codes, f"{name}.{suffix}": scale}, codes.float() * each


def group(**weights):
    return {"group_0": {"targets": ["Linear"], "weights": {"symmetric": True, **weights}}}


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
CT = {"quant_method": "compressed-tensors", "ignore": ["lm_head"]}
W4 = {**CT, "format": "pack-quantized", "config_groups": group(**INT4)}
W8 = {**CT, "format": "pack-quantized", "config_groups": group(**INT4 | {"num_bits": 8})}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
ROWS = group(num_bits=8, type="int", strategy="channel")
BLOCKS = group(num_bits=8, type="float", strategy="block", block_structure=[48, 32])
ODD = {"quant_method": "fp8", "weight_block_size": [48, 48]}
INT8_BY_ROW = {**CT, "format": "int-quantized", "config_groups": ROWS}
FP8_BY_BLOCK = {**CT, "format": "float-quantized", "config_groups": BLOCKS}
FORMATS = {  # name -> quantization_config, and what makes a layer's tensors and its weight
    "gptq": (GPTQ, gptq),
    "gptq-unsorted": (GPTQ | {"desc_act": True}, lambda *a: gptq(*a, unsorted=True)),
    "gptq-v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, lambda *a: gptq(*a, less_one=False)),
    "awq": ({"quant_method": "awq", "bits": 4, "version": "GEMM", "group_size": GROUP}, awq),
    "w4a16": (W4, packed),
    "w4a16-zeros": (W4, lambda *a: packed(*a, zeros=True)),
    "w4a16-unsorted": (W4, lambda *a: packed(*a, unsorted=True)),
    "w8a16": (W8, lambda *a: packed(*a, bits=8)),
    "int8": (INT8_BY_ROW, lambda n, w, draw: scaled(n, w, draw, torch.int8, 1, w.size(1))),
    "ct-fp8-blocks": (FP8_BY_BLOCK, lambda *a: scaled(*a, torch.float8_e4m3fn, 48, 32, scale_dtype=torch.bfloat16)),
    "fp8-partial": (ODD, lambda *a: scaled(*a, torch.float8_e4m3fn, 48, 48, "weight_scale_inv")),
}


def write(folder, config, make, dtype="float32"):
    """A quantized folder of a tiny Llama, and the state dict of the model that it stands for."""
    draw = torch.Generator().manual_seed(0)
    state, want = {}, {}
    for name, w in tiny_hf("llama-gqa", **SHAPE).state_dict().items():
        stem = name.removesuffix(".weight")
        parts, value = make(stem, w, draw) if "proj" in name else ({name: w.clone()}, w)
        state |= parts
        want[name] = value
    tiny_hf("llama-gqa", **SHAPE).config.save_pretrained(folder)
    settle(folder, quantization_config=config, dtype=dtype)
    write_tokenizer(folder)
    save_file({k: x.contiguous().clone() for k, x in state.items()}, folder / "model.safetensors", {"format": "pt"})
    return want


def settle(folder, **keys):
    hf = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps(hf))


def change(folder, changes):
    """Replaces tensors of the file; None removes them."""
    state = load_file(folder / "model.safetensors") | changes
    save_file({k: x for k, x in state.items() if x is not None}, folder / "model.safetensors", {"format": "pt"})


def ours(folder, want):
    config = config_from_hf(json.loads((folder / "config.json").read_text()), "tiny", "config.json")
    return from_hf(config, want, want.__getitem__)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_quantized_folder_converts_to_the_weights_that_it_stands_for(kind, tmp_path, capsys):
    want = write(tmp_path, *FORMATS[kind])
    script("convert_hf_checkpoint")(tmp_path)
    _, specs, get = open_lit(tmp_path)
    found = ours(tmp_path, want)
    assert {get(name).dtype for name in specs} == {torch.float32}
    for name in specs:
        torch.testing.assert_close(get(name), found[name], rtol=1e-6, atol=1e-7)
    assert "7 weights are quantized" in capsys.readouterr().out


def test_weights_get_the_dtype_that_config_json_states_or_the_one_asked_for(tmp_path):
    want = write(tmp_path, *FORMATS["w4a16"], dtype="bfloat16")
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(open_source(tmp_path).get(name), want[name].bfloat16())
    assert torch.equal(open_source(tmp_path, torch.float16).get(name), want[name].half())


def loaded(folder):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cpu")


def test_fp8_in_blocks_is_what_transformers_makes_of_it(tmp_path):
    """Where 128 divides all sizes: elsewhere transformers 5.23 takes blocks of rows / rows of scales."""
    model = tiny_hf("llama-gqa", hidden_size=256, intermediate_size=128, num_hidden_layers=1, num_key_value_heads=2)
    draw, state = torch.Generator().manual_seed(0), {}
    for name, w in model.state_dict().items():
        state[name] = w.bfloat16()
        if "proj" in name:
            state |= scaled(name.removesuffix(".weight"), w, draw, torch.float8_e4m3fn, 128, 128, "weight_scale_inv")[0]
    model.config.save_pretrained(tmp_path)
    settle(tmp_path, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]}, dtype="bfloat16")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    source = open_source(tmp_path)
    assert len(source.quantized) == 7
    for name, w in loaded(tmp_path).state_dict().items():
        assert torch.equal(source.get(name), w), name


def test_experts_in_mxfp4_are_what_transformers_makes_of_them(tmp_path):
    import transformers

    draw, state = torch.Generator().manual_seed(0), {}
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.GptOssConfig(
        **sizes, num_key_value_heads=2, vocab_size=320, num_local_experts=3, num_experts_per_tok=2, head_dim=16
    )
    for name, p in transformers.GptOssForCausalLM(config).to(torch.bfloat16).state_dict().items():
        state[name] = p.clone()
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            n, i, o = state.pop(name).shape
            state[f"{name}_blocks"] = draw_codes(draw, n, o, i // 32, 16, bits=8).to(torch.uint8)
            state[f"{name}_scales"] = torch.randint(112, 122, (n, o, i // 32), generator=draw).to(torch.uint8)
            state[f"{name}_scales"][0, :4] = 0  # subnormal in bf16
    config.save_pretrained(tmp_path)
    settle(tmp_path, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": []}, dtype="bfloat16")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    source = open_source(tmp_path)
    theirs = loaded(tmp_path)
    want = theirs.state_dict()
    assert len(source.quantized) == 2
    for name in source.quantized:
        assert torch.equal(source.get(name), want[name]), name
        assert source.specs[name].shape == want[name].shape
    model = GPT(config_from_hf(source.hf_config, "tiny", "config.json")).eval()
    model.load_state_dict(from_hf(model.config, source.names, source.get))
    ids = torch.randint(0, 320, (1, 16), generator=draw)
    with torch.no_grad():
        torch.testing.assert_close(model.float()(ids), theirs.float()(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def bnb(tmp_path_factory):
    """Folder of a tiny Llama in bitsandbytes' 4 bits by kind, and its weights by bitsandbytes, fp32."""
    package = pytest.importorskip("bitsandbytes")
    import transformers

    plain = tmp_path_factory.mktemp("plain")
    tiny_hf("llama-gqa", **SHAPE).bfloat16().save_pretrained(plain)

    def made(name, **settings):
        folder = tmp_path_factory.mktemp(name)
        config = transformers.BitsAndBytesConfig(**settings)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            plain, dtype=torch.bfloat16, device_map="cpu", quantization_config=config
        )
        model.save_pretrained(folder)
        write_tokenizer(folder)
        want = {name: w for name, w in loaded(plain).state_dict().items() if "proj" not in name}
        for path, module in model.named_modules():
            if type(module).__name__ == "Linear4bit":
                state = module.weight.quant_state
                state.dtype = torch.float32
                want[f"{path}.weight"] = package.functional.dequantize_4bit(module.weight.view(torch.uint8), state)
            elif type(module).__name__ == "Linear8bitLt":
                codes = module.weight.data if module.weight.CB is None else module.weight.CB
                want[f"{path}.weight"] = package.functional.int8_vectorwise_dequant(codes, module.weight.SCB)
        return folder, want

    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    return {
        "nf4": made("nf4", **nf4, bnb_4bit_use_double_quant=True),
        "fp4": made("fp4", load_in_4bit=True, bnb_4bit_quant_type="fp4"),
        "stored": made("stored", **nf4, bnb_4bit_quant_storage=torch.bfloat16),
        "int8": made("int8", load_in_8bit=True),
    }


@pytest.mark.parametrize("kind", ["nf4", "fp4", "stored", "int8"])
def test_bitsandbytes_weights_are_what_bitsandbytes_makes_of_them(kind, bnb):
    folder, want = bnb[kind]
    source = open_source(folder, torch.float32)
    assert len(source.quantized) == 7
    for name in source.quantized:
        torch.testing.assert_close(source.get(name), want[name], rtol=3e-7 if kind == "int8" else 0, atol=0)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "stored"])
def test_weights_in_4_bits_stay_in_them_bit_for_bit(kind, bnb, capsys):
    folder, want = bnb[kind]
    script("convert_hf_checkpoint")(folder)
    assert "7 weights stay in the 4 bits" in capsys.readouterr().out
    found = ours(folder, want)
    values = "fp4" if kind == "fp4" else "nf4"
    model, digest = load_base(make_fabric("bf16-true"), folder, f"bnb.{values}")
    plain, same = load_base(make_fabric("bf16-true"), folder)
    assert digest == same
    for name, layer in plain.named_modules():
        weight = f"{name}.weight"
        if hasattr(layer, "dequantize") and name.startswith("transformer.h."):
            assert torch.equal(model.get_submodule(name).dequantize(), found[weight]), name
            assert torch.equal(layer.weight, found[weight].bfloat16()), name
    state = torch.load(folder / WEIGHTS, weights_only=True)
    assert state["transformer.h.0.mlp.proj.weight"].nbytes == 64 * 128 // 2


def test_the_codes_stay_also_where_scales_are_to_be_quantized(bnb):
    folder, _ = bnb["nf4"]
    script("convert_hf_checkpoint")(folder)
    layers = [
        load_base(make_fabric("32-true"), folder, kind)[0].transformer.h[0].attn.qkv
        for kind in ("bnb.nf4", "bnb.nf4-dq")
    ]
    assert torch.equal(layers[0].weight, layers[1].weight)
    exact, rounded = (layer.scales() for layer in layers)
    assert 0 < (rounded - exact).abs().max() < 0.02 * exact.max()


def test_a_dtype_that_is_asked_for_dequantizes_and_another_kind_quantizes_these_weights(bnb, tmp_path, capsys):
    folder, want = bnb["nf4"]
    script("convert_hf_checkpoint")(folder, dtype="float32")
    assert "dequantized to float32" in capsys.readouterr().out
    name = "transformer.h.0.mlp.proj.weight"
    get = open_lit(folder)[2]
    assert torch.equal(get(name), ours(folder, want)[name]) and not get.kinds
    script("convert_hf_checkpoint")(folder)
    layer = load_base(make_fabric("bf16-true"), folder, "int8")[0].transformer.h[0].mlp.proj
    assert layer.weight.dtype == torch.int8
    assert (layer.dequantize() - ours(folder, want)[name]).abs().max() < 0.02 * get(name).abs().max()


def test_exports_say_in_which_precision_they_are(bnb, tmp_path, capsys):
    folder, want = bnb["nf4"]
    script("convert_hf_checkpoint")(folder)
    export = script("convert_lit_checkpoint")
    export(folder, tmp_path / "hf")
    assert "The weights are in bfloat16; 5 of them, in 4 bits (nf4)" in capsys.readouterr().out
    hf = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert "quantization_config" not in hf and hf["torch_dtype"] == "bfloat16"
    for name, w in loaded(tmp_path / "hf").state_dict().items():
        assert torch.equal(w, want[name].bfloat16()), name
    write(tmp_path / "gptq", *FORMATS["gptq"])
    script("convert_hf_checkpoint")(tmp_path / "gptq")
    export(tmp_path / "gptq", tmp_path / "hf", overwrite=True)
    assert "The weights are in float32, to which they were dequantized from GPTQ in 4 bits" in capsys.readouterr().out


LAYER = "model.layers.0.mlp.down_proj"
I32 = torch.int32
DAMAGE = {  # what the message says -> format and changes to its tensors
    "lacks .*qzeros": ("gptq", {f"{LAYER}.qzeros": None}),
    "lacks .*g_idx": ("gptq", {f"{LAYER}.g_idx": None}),
    "names groups 0 to 9 of 4": ("gptq", {f"{LAYER}.g_idx": torch.arange(128, dtype=I32) // 14}),
    "go together": ("gptq", {f"{LAYER}.scales": torch.zeros(4, 63).half()}),
    "qweight.* is float32": ("awq", {f"{LAYER}.qweight": torch.zeros(128, 8)}),
    "does not hold": ("w4a16", {f"{LAYER}.weight_shape": torch.tensor([2**40, 128])}),
    "not the scales of": ("w4a16", {f"{LAYER}.weight_scale": torch.zeros(64, 3)}),
    "blocks of 48 x 48, all x all": ("fp8-partial", {f"{LAYER}.weight_scale_inv": torch.zeros(3, 3)}),
    "float8_e4m3fn.*as quantized weights": ("fp8-partial", {f"{LAYER}.weight_scale_inv": None}),
    "weight_scale.*as quantized weights": ("fp8-partial", {f"{LAYER}.weight_scale": torch.zeros(3)}),
    "NaN or infinite": ("int8", {f"{LAYER}.weight_scale": torch.full((64, 1), torch.inf)}),
}


@pytest.mark.parametrize("said", DAMAGE)
def test_tensors_that_do_not_go_together_are_refused_in_one_line(said, tmp_path):
    kind, changes = DAMAGE[said]
    write(tmp_path, *FORMATS[kind])
    change(tmp_path, changes)
    with pytest.raises(UserError, match=said) as e:
        script("convert_hf_checkpoint")(tmp_path)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.glob("lit_*")) and not list(tmp_path.glob("*.tmp*"))


SETTINGS = f"{LAYER}.weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    "stated, said",
    [
        ({"shape": [10**9, 10**9]}, "do not go together"),
        ({"shape": [64, -128]}, "not that of a matrix"),
        ({"blocksize": 0}, "not the size of a block"),
        ({"nested_offset": "1"}, "nested_offset='1'"),
        ({"padding": "x" * 5000}, "more than 4,096"),
    ],
)
def test_settings_of_bitsandbytes_are_checked_before_memory_is_taken(stated, said, bnb, tmp_path):
    folder, _ = bnb["nf4"]
    for path in folder.iterdir():
        if not path.name.startswith("lit_"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    text = bytes(load_file(tmp_path / "model.safetensors")[SETTINGS].tolist())
    text = json.dumps(json.loads(text) | stated).encode()
    change(tmp_path, {SETTINGS: torch.tensor(list(text), dtype=torch.uint8)})
    with pytest.raises(UserError, match=said):
        open_source(tmp_path)


def test_quantized_weights_of_which_config_json_says_nothing_are_refused_by_name(bnb, tmp_path):
    """As transformers 5.23 writes them when a model that it has dequantized is saved."""
    write(tmp_path, *FORMATS["fp8-partial"])
    settle(tmp_path, quantization_config=None)
    with pytest.raises(UserError, match=r"proj.weight.*float8_e4m3fn.*says nothing"):
        open_source(tmp_path)
    os.link(bnb["nf4"][0] / "model.safetensors", tmp_path / "other.safetensors")
    os.replace(tmp_path / "other.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"absmax.*says nothing"):
        open_source(tmp_path)


def test_codes_and_scales_of_our_own_file_that_do_not_go_together_are_refused(bnb, tmp_path):
    folder, _ = bnb["nf4"]
    script("convert_hf_checkpoint")(folder)
    for path in folder.iterdir():
        if "safetensors" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    state = torch.load(tmp_path / WEIGHTS, weights_only=True)
    state["transformer.h.0.mlp.proj.weight.nf4"] = torch.zeros(64, 3)
    torch.save(state, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"mlp\.proj\.weight .*do not go together"):
        open_lit(tmp_path)
