"""Convert a downloaded checkpoint folder to this toolkit's format, in place.

python scripts/convert_hf_checkpoint.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b

Reads safetensors, .bin or gguf, also quantized; writes lit_model.pth and lit_config.json beside them, and
tokenizer.json where the tokenizer is in a gguf or in vocab.json and merges.txt.
"""

from pathlib import Path
from typing import Literal


def main(
    checkpoint_dir: Path,
    model_name: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    pad_vocab_multiple: int = 1,
) -> None:
    """Converts a downloaded checkpoint.

    Args:
        checkpoint_dir: the folder with the downloaded files.
        model_name: what to call the model; the folder's name if not given.
        dtype: dtype of the converted weights; as in the files if not given. Weights in bitsandbytes' 4 bits stay in
            these only if it is not given; quantized in another way, they get the dtype that config.json states.
        pad_vocab_multiple: pad the vocabulary's tensors with zero rows to a multiple of this; 64 suits GPUs. Tokens
            that were added to the tokenizer but not to the model get such a row, too.
    """
    from lit_gpt.args.folders import require_downloaded

    require_downloaded(checkpoint_dir)  # before the slow imports
    import torch

    from lit_gpt.checkpoints.sizes import require_weights_for
    from lit_gpt.convert.configs import config_from_hf
    from lit_gpt.convert.gguf import TOKENIZER_FILES, write_tokenizer
    from lit_gpt.convert.multimodal import left_behind
    from lit_gpt.convert.names import EMBEDDINGS, HEAD, lit_shapes
    from lit_gpt.convert.quantized.streamed import stream_from_source
    from lit_gpt.convert.readers import open_source
    from lit_gpt.convert.vocab_merges import join_vocabulary_and_merges
    from lit_gpt.convert.vocabulary import pad_vocabulary
    from lit_gpt.files import nothing_left_of_a_failure, only_writer, replace_with, save_stream

    to = getattr(torch, dtype) if dtype else None
    with only_writer(checkpoint_dir), nothing_left_of_a_failure(checkpoint_dir, TOKENIZER_FILES):
        source = open_source(checkpoint_dir, to)
        name = model_name or checkpoint_dir.resolve().name
        config = config_from_hf(source.hf_config, name, str(source.config_file))
        require_weights_for(config, source.specs, source.config_file.parent)
        rows = config.padded_vocab_size
        has_tokenizer = any((checkpoint_dir / f"tokenizer.{suffix}").is_file() for suffix in ("json", "model"))
        if source.files[0].suffix == ".gguf" and not has_tokenizer:
            write_tokenizer(source.files[0], checkpoint_dir)
        elif not has_tokenizer:
            join_vocabulary_and_merges(checkpoint_dir)
        config = pad_vocabulary(config, pad_vocab_multiple, checkpoint_dir)
        print(f"Model config {config}")
        if config.wrapper:
            print(left_behind(config, source.specs))
        print(f"Reading {len(source.names)} tensors from {', '.join(f.name for f in source.files)}")
        specs, tensors, notes = stream_from_source(config, source, to, rows)
        print(*notes, sep="\n", end="\n" if notes else "")
        shared = {HEAD: EMBEDDINGS} if config.tie_embeddings else {}
        save_stream(specs, tensors, checkpoint_dir / "lit_model.pth", shared)
        replace_with(checkpoint_dir / "lit_config.json", config.to_json)
        n_parameters = sum(shape.numel() for n, shape in lit_shapes(config).items() if n not in shared)
        print(f"Saved {n_parameters:,} parameters to {checkpoint_dir / 'lit_model.pth'}")


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main, unchecked=("checkpoint_dir",))  # it is not a converted checkpoint yet
