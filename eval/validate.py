"""Measure the mean loss per target token of a pretrained model, or of a run of any method, on a validation set.

python eval/validate.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b --finetuned_path out/lora/my_run

It is the loss that finetune/lora.py and its siblings measure, on the run's own validation set without --data_dir.
"""

from pathlib import Path
from typing import Literal

from lit_gpt.args import Precision, Quantization, TrainArgs, ValidationArgs


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    finetuned_path: Path | None = None,
    data_dir: Path | None = None,
    precision: Precision | None = None,
    quantize: Quantization | Literal["none"] | None = None,
    micro_batch_tokens: int | None = None,
    devices: int | None = None,
) -> None:
    """Measures the validation loss of a model.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        finetuned_path: a run's folder, one of its checkpoints, or the weights in it; the pretrained model if not given.
        data_dir: folder of a prepared data set; the run's own if not given.
        precision: the training's precision if not given; for a pretrained model, bf16-true on a GPU that has it and
            32-true on a CPU.
        quantize: quantize the weights of the blocks to 4 or 8 bits, or not (none); if not given, a run is quantized as
            in its training, and a pretrained model is not.
        micro_batch_tokens: tokens per forward pass; as many as in training if not given.
        devices: GPUs, or processes on a CPU, that share the samples; 1, or as many as torchrun started, if not given.
    """
    from lit_gpt.args.cluster import ClusterArgs
    from lit_gpt.args.folders import require_checkpoint, run_folder
    from lit_gpt.checkpoints.base import load_pretrained
    from lit_gpt.checkpoints.configs import read_config
    from lit_gpt.checkpoints.runs import load_finetuned, read_run
    from lit_gpt.data import store
    from lit_gpt.data.compatibility import check_compatible, check_lengths, check_vocabulary
    from lit_gpt.fabric import make_fabric
    from lit_gpt.parallel.watch import together
    from lit_gpt.tokenizer import Tokenizer
    from lit_gpt.training.validation import validate
    from lit_gpt.training.validation_data import validated_on

    require_checkpoint(checkpoint_dir)
    run_dir = finetuned_path and run_folder(finetuned_path)
    record = run_dir and read_run(run_dir)
    data_dir, note = (data_dir, "") if data_dir else validated_on(record, run_dir)
    _, data, meta = store.load(data_dir)
    check_compatible(meta, data_dir, Tokenizer(checkpoint_dir), record and record.prompt_style)
    config = read_config(checkpoint_dir)
    check_vocabulary((data,), data_dir, config.padded_vocab_size)
    check_lengths((data,), data_dir, config.block_size)
    fabric = make_fabric(precision or (record and record.training.get("precision")), cluster=ClusterArgs(devices))
    with together(fabric) as team:
        if run_dir is None:
            model = load_pretrained(fabric, checkpoint_dir, None if quantize == "none" else quantize)
        else:
            model, _ = load_finetuned(fabric, checkpoint_dir, run_dir, quantize)
        train, validation = TrainArgs(micro_batch_tokens=micro_batch_tokens), ValidationArgs()
        loss = validate(fabric, model, data, train=train, validation=validation, team=team)
    print(f"val loss {loss:.4f} on the {len(data):,} samples of {data_dir}{note}")


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
