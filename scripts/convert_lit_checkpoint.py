"""Convert a checkpoint of this toolkit for other tools: a Hugging Face folder, gguf, or litgpt's layout.

python scripts/convert_lit_checkpoint.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b --output_dir out/hf
"""

from pathlib import Path
from typing import Literal

# fmt: off
GgufType = Literal["F16", "BF16", "Q8_0", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_0",
                   "Q5_K_S", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS"]
# fmt: on


def main(
    checkpoint_dir: Path,
    output_dir: Path,
    format: Literal["hf", "gguf", "lit"] = "hf",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    gguf_type: GgufType = "F16",
    max_shard_gb: float = 5.0,
    unpad_vocab: bool = False,
    overwrite: bool = False,
    multimodal_dir: Path | None = None,
    prompt: str = "The quick brown fox jumps over the lazy dog.",
) -> None:
    """Writes a checkpoint for other tools.

    Args:
        checkpoint_dir: a converted or merged checkpoint, of this toolkit or of another Lit-GPT.
        output_dir: the folder to write.
        format: hf for transformers, gguf for llama.cpp, lit for litgpt.
        dtype: dtype of the weights of hf and lit; as they are if not given.
        gguf_type: type of gguf's matrices; those after Q8_0 need llama.cpp's llama-quantize.
        max_shard_gb: maximum size of a shard of hf's weights, in 10^9 bytes.
        unpad_vocab: drop the rows of the vocabulary's tensors for which the tokenizer has no token.
        overwrite: replace output_dir if it is not empty.
        multimodal_dir: for hf, the checkpoint that a language model was taken from, whose other parts are put back.
        prompt: text on which the logits are compared.
    """
    import torch

    from lit_gpt.checkpoints.layouts import open_lit
    from lit_gpt.convert.export import styled
    from lit_gpt.convert.formats import write_as
    from lit_gpt.convert.modelfile import create_line
    from lit_gpt.convert.precision import precision_of
    from lit_gpt.convert.verify import difference_read_back
    from lit_gpt.convert.vocabulary import check_vocabulary
    from lit_gpt.errors import UserError
    from lit_gpt.files import only_writer, replace_folder
    from lit_gpt.merge.record import origin_of_text, trained_style

    if dtype and format == "gguf":
        raise UserError(f"--dtype {dtype} is for hf and lit; pass --gguf_type F16, BF16, Q8_0 or Q4_K_M")
    config, specs, get = model = open_lit(checkpoint_dir)
    tokenizer = check_vocabulary(config, checkpoint_dir)
    said = precision_of(checkpoint_dir, specs, get, gguf_type if format == "gguf" else dtype)
    options = {"dtype": getattr(torch, dtype) if dtype else None, "gguf_type": gguf_type}
    options |= {"rows": tokenizer.vocab_size if unpad_vocab else None, "max_shard_bytes": int(max_shard_gb * 1e9)}
    options["multimodal_dir"] = origin_of_text(checkpoint_dir, multimodal_dir)
    with_style = styled(checkpoint_dir, trained_style(checkpoint_dir), format == "gguf")
    with only_writer(output_dir), with_style as (source, notes):
        print(f"Writing {len(specs)} tensors of {config.name} to {output_dir}", *notes, said, sep="\n")
        replace_folder(output_dir, lambda folder: write_as(format, model, source, folder, **options), overwrite)
    print(f"For Ollama: {create_line(output_dir, config.name)}\n" if format == "gguf" else "", end="")
    ids = tokenizer.encode(prompt)
    print(f"Logits, read back, on {len(ids)} tokens: {difference_read_back(config, get, output_dir, ids)}")


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
