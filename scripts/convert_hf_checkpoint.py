"""Convert a downloaded checkpoint folder to this toolkit's format, in place.

python scripts/convert_hf_checkpoint.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b

Reads safetensors, .bin or gguf; writes lit_model.pth and lit_config.json (and the tokenizer of a gguf) beside them.
"""

from pathlib import Path
from typing import Literal


def main(
    checkpoint_dir: Path,
    model_name: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
) -> None:
    """Convert a checkpoint.

    Args:
        checkpoint_dir: the folder with the downloaded files.
        model_name: what to call the model; the folder's name if not given.
        dtype: dtype of the converted weights; as in the files if not given.
    """
    import torch

    from lit_gpt.checkpoint import CONFIG, WEIGHTS, replace_with, save_state
    from lit_gpt.convert.configs import config_from_hf
    from lit_gpt.convert.gguf import write_tokenizer
    from lit_gpt.convert.names import from_hf
    from lit_gpt.convert.readers import open_source
    from lit_gpt.convert.vocabulary import check_vocabulary

    source = open_source(checkpoint_dir)
    name = model_name or checkpoint_dir.resolve().name
    config = config_from_hf(source.hf_config, name, str(source.config_file))
    if source.files[0].suffix == ".gguf" and not (checkpoint_dir / "tokenizer.json").is_file():
        write_tokenizer(source.files[0], checkpoint_dir)
    check_vocabulary(config, checkpoint_dir)
    print(f"Model config {config}")
    print(f"Reading {len(source.names)} tensors from {', '.join(f.name for f in source.files)}")
    state = from_hf(config, source.names, source.get, getattr(torch, dtype) if dtype else None)
    save_state(state, checkpoint_dir / WEIGHTS)
    replace_with(checkpoint_dir / CONFIG, config.to_json)
    n_parameters = sum({x.data_ptr(): x.numel() for x in state.values()}.values())
    print(f"Saved {n_parameters:,} parameters to {checkpoint_dir / WEIGHTS}")


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
