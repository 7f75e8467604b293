"""Converts tiny random models of transformers' architectures, drawn by a seed: each is read rightly, or refused.

python benchmarks/architectures.py --checkpoint_dir checkpoints/HuggingFaceTB/SmolLM2-135M-Instruct [--seed 11]

`read` means that the logits of the converted model are those of transformers to 1e-4 of the largest, and `refused` that
one line says what is not supported, before weights are read. Anything else is a fault. Architectures of which the small
sizes make no model are left out, and said so. The checkpoint lends its tokenizer.
"""

import argparse
import contextlib
import io
import runpy
import shutil
import sys
import tempfile
from collections import Counter
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import torch
from gpu import commit
from torch import Tensor

from lit_gpt.checkpoints.base import load_base
from lit_gpt.cli import parse
from lit_gpt.errors import UserError
from lit_gpt.fabric import make_fabric

_ROOT = Path(__file__).parents[1]
_WIDTHS = dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim"), 64)
_WIDTHS |= dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim"), 96)
_WIDTHS |= {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "word_embed_proj_dim": 64}
_COUNTS = dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 4)
_COUNTS |= dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4)
_COUNTS |= dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4)
_COUNTS |= {"num_key_value_heads": 2, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1}
_COUNTS |= {"topk_group": 1, "head_dim": 16, "max_position_embeddings": 128, "n_positions": 128, "pad_token_id": None}
_BY_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type")
_MOST_PARAMETERS = 60_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--models", type=int, default=30, help="to try, without those that cannot be made")
    args = parser.parse_args()
    print(f"benchmarks/architectures.py, commit {commit()}; torch {torch.__version__}, "
          f"transformers {version('transformers')}, --seed {args.seed}")  # fmt: skip
    auto: Any = import_module("transformers.models.auto.modeling_auto")
    names = sorted(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    Random(args.seed).shuffle(names)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if found.total() - found["not made"] < args.models:
                kind, why = _tried(name, args.checkpoint_dir, Path(folder) / name)
                print(f"{name:28}{kind}: {why}"[:200], flush=True)
                found[kind] += 1
    print(*(f"{n} {kind}" for kind, n in found.items()), sep=", ")
    if found["FAULT"]:
        sys.exit("error: there are faults")


def _tried(name: str, checkpoint_dir: Path, folder: Path) -> tuple[str, str]:
    """Returns what became of an architecture: read, refused, FAULT or not made; and how."""
    try:
        ids, logits = _make(name, folder)
    except Exception as e:  # sizes that do not go together, each with an error of its own
        return "not made", f"{type(e).__name__} {e}".splitlines()[0]
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint_dir / file, folder)
    convert = runpy.run_path(str(_ROOT / "scripts" / "convert_hf_checkpoint.py"))["main"]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            convert(**parse(convert, ["--checkpoint_dir", str(folder)]))
            model, _ = load_base(make_fabric("32-true"), folder)
    except UserError as e:
        return ("FAULT" if "\n" in str(e) else "refused"), str(e).removeprefix(f"{folder}/")
    except Exception as e:
        return "FAULT", repr(e)
    with torch.no_grad():
        ours = model.eval()(ids)[..., : logits.size(-1)]
    off = float((ours - logits).abs().max() / logits.abs().max())
    return ("read" if off < 1e-4 else "FAULT"), f"logits {off:.0e} off"


def _make(name: str, folder: Path) -> tuple[Tensor, Tensor]:
    """Writes a tiny random model of an architecture; returns tokens, (1, 12), and its logits for them.

    Raises:
        Exception: these sizes make no model, or too large a one.
    """
    transformers: Any = import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[name]()
    _shrink(config)
    with torch.device("meta"):
        n = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
    if n > _MOST_PARAMETERS:
        raise ValueError(f"{n:,} parameters")
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(3, 300, (1, 12))
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    model.save_pretrained(folder)
    return ids, logits


def _shrink(config: Any) -> None:
    """Makes the sizes of a configuration small, and those of the parts of a multimodal one."""
    for key, value in (_WIDTHS | _COUNTS | {"vocab_size": 49_152}).items():
        if hasattr(config, key) and isinstance(getattr(config, key), int | None):
            setattr(config, key, value)
    for key in _BY_LAYER:
        if isinstance(kinds := getattr(config, key, None), list):
            setattr(config, key, kinds[: _COUNTS["num_hidden_layers"]])
    for key in ("text_config", "vision_config", "audio_config"):
        if hasattr(part := getattr(config, key, None), "to_dict"):
            _shrink(part)


if __name__ == "__main__":
    main()
