"""Convert a checkpoint of this toolkit to a Hugging Face folder that transformers loads as it is.

python scripts/convert_lit_checkpoint.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b --output_dir out/hf

Writes safetensors in shards, config.json and the tokenizer's files, reads them back, and compares the logits.
"""

from pathlib import Path
from typing import Literal


def main(
    checkpoint_dir: Path,
    output_dir: Path,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    max_shard_gb: float = 5.0,
    unpad_vocab: bool = False,
    overwrite: bool = False,
    prompt: str = "The quick brown fox jumps over the lazy dog.",
) -> None:
    """Write a checkpoint for other tools.

    Args:
        checkpoint_dir: a converted or merged checkpoint, of this toolkit or of another Lit-GPT.
        output_dir: the folder to make.
        dtype: dtype of the weights; as they are if not given.
        max_shard_gb: size of one file of weights, in 10^9 bytes.
        unpad_vocab: leave out the rows of the vocabulary's tensors for which the tokenizer has no token.
        overwrite: replace output_dir if it holds something.
        prompt: text on which the logits are compared.
    """
    import torch

    from lit_gpt.convert.configs import config_from_hf
    from lit_gpt.convert.export import write_hf
    from lit_gpt.convert.lit import open_lit
    from lit_gpt.convert.readers import open_source
    from lit_gpt.convert.verify import reader, streamed_logits
    from lit_gpt.convert.vocabulary import check_vocabulary
    from lit_gpt.files import replace_folder
    from lit_gpt.tokenizer import Tokenizer

    config, specs, get = open_lit(checkpoint_dir)
    check_vocabulary(config, checkpoint_dir)
    tokenizer = Tokenizer(checkpoint_dir)
    rows = tokenizer.vocab_size if unpad_vocab else None
    to, max_bytes = getattr(torch, dtype) if dtype else None, int(max_shard_gb * 1e9)
    print(f"Writing {len(specs)} tensors of {config.name} to {output_dir}")
    replace_folder(
        output_dir,
        lambda folder: write_hf(config, specs, get, checkpoint_dir, folder, to, rows, max_bytes),
        overwrite,
    )
    written = open_source(output_dir)
    again = config_from_hf(written.hf_config, config.name, str(written.config_file))
    ids = tokenizer.encode(prompt)
    ours, theirs = streamed_logits(config, get, ids), streamed_logits(again, reader(again, written), ids)
    largest = (ours[:, : theirs.size(1)] - theirs).abs().max()
    print(f"Largest difference of the logits, read back, on {len(ids)} tokens: {largest:.3g}")


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
