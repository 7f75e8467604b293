"""Join prepared data sets and files of rows into one, by weights or sizes, with rows made by augmentation if wanted.

python scripts/prepare_mix.py --sources "{alpaca: data/alpaca, dolly: data/dolly}" --weights "{alpaca: 1, dolly: 2}"
python scripts/prepare_mix.py --sources "{lima: data/lima, mine: my.jsonl}" --sizes "{lima: 10000}" \
    --shuffle_options 0.5 --perturb 0.2
"""

from pathlib import Path

from lit_gpt.args import PrepareArgs
from lit_gpt.args.curation import AugmentArgs, MixArgs


def main(
    mix: MixArgs,
    destination_path: Path = Path("data/mix"),
    checkpoint_dir: Path | None = None,
    augment: AugmentArgs = AugmentArgs(),
    prepare: PrepareArgs = PrepareArgs(),
) -> None:
    """Joins data sets.

    Args:
        destination_path: folder for the mixture.
        checkpoint_dir: the checkpoint whose tokenizer raw sources are prepared with; if not given, that of the prepared
            sources.
    """
    from lit_gpt.data.curate.mix import mix as mix_sources

    mix_sources(destination_path, mix, augment, prepare_args=prepare, checkpoint_dir=checkpoint_dir)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
