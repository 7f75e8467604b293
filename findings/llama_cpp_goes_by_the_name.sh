#!/usr/bin/env bash
# What llama.cpp makes of a text if nothing but the display name in a gguf file (general.name) differs.
#
# One would guess: the same tokens. The name is what a person called the model, and the tokenizer is in the file with all
# its tokens and their kinds. But a name with "phi3" or "phi-3" in it, in any case and anywhere (a finetuned Llama called
# "not-phi3"), makes special tokens take the white space after them along, so that a line break in a chat template is lost;
# and the same name on a file that lacks one of <unk>, <s>, </s>, <|endoftext|> makes the model fail to load.
# The other way round, a finetuned Phi 3 under a name of its own is split differently from how it was trained.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "numpy==2.3.3" "gguf==0.19.0" "xllamacpp==2026.10.11549"
cd "$work"
"$work/venv/bin/python" - <<'PY' 2>/dev/null
import json
import sys
from importlib.metadata import version
from urllib.request import Request, urlopen

import gguf
import numpy as np
import xllamacpp

TEXT = "<|user|>\n\nhi"


def letters():
    """The characters by which byte-level vocabularies show bytes, in the order of the bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = iter(range(256, 512))
    return [chr(b) if b in shown else chr(next(other)) for b in range(256)]


def write(path, name, special):
    """A model of zeros with a byte-level tokenizer."""
    tokens = [*letters(), *special]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3] * len(special))
    writer.add_token_merges(["h i"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {f"blk.0.{n}": (32, 32) for n in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    for tensor, shape in shapes.items():
        writer.add_tensor(f"{tensor}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tokens


def split(path, tokens):
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = path, 64, 1, 0
    params.warmup = params.fit_params = False
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as e:
        return f"does not load ({e})"
    asked = json.dumps({"content": TEXT, "add_special": False, "parse_special": True}).encode()
    address = f"{server.listening_address}/tokenize"
    with urlopen(Request(address, asked, {"Content-Type": "application/json"}), timeout=60) as answer:
        return [tokens[i] for i in json.load(answer)["tokens"]]


print(f"xllamacpp {version('xllamacpp')}, gguf {version('gguf')}; the text is {TEXT!r}")
found = {}
for special in (["<s>", "</s>", "<unk>", "<|endoftext|>", "<|user|>"], ["<s>", "</s>", "<|user|>"]):
    for name in ("not-llama3", "not-phi3"):
        tokens = write("model.gguf", name, special)
        found[name, len(special)] = split("model.gguf", tokens)
        print(f"general.name={name!r}, special tokens {' '.join(special)}: {found[name, len(special)]}")
line = letters()[10]
expected = {
    ("not-llama3", 5): ["<|user|>", line, line, "h", "i"],
    ("not-phi3", 5): ["<|user|>", "h", "i"],
    ("not-llama3", 3): ["<|user|>", line, line, "h", "i"],
}
same = all(found[key] == value for key, value in expected.items())
sys.exit(0 if same and str(found["not-phi3", 3]).startswith("does not load") else 1)
PY
