"""Prepare preferences, answers that are better than others, for finetune/preference.py; their layout is recognized.

python scripts/prepare_preferences.py --checkpoint_dir ... --json_path pairs.jsonl
python scripts/prepare_preferences.py --checkpoint_dir ... --dataset HuggingFaceH4/ultrafeedback_binarized \
  --split train_prefs --validation_split test_prefs
"""

from pathlib import Path

from lit_gpt.args import PrepareArgs
from lit_gpt.args.data import DatasetArgs


def main(
    json_path: str | None = None,
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    destination_path: Path = Path("data/preferences"),
    columns: dict[str, str] | None = None,
    validation_file: Path | None = None,
    task_data: Path | None = None,
    hub: DatasetArgs = DatasetArgs(),
    prepare: PrepareArgs = PrepareArgs(test_split_fraction=0.05),
) -> None:
    """Prepares pairs of answers, or answers with a label: TRL's layouts, UltraFeedback, HH-RLHF, Orca pairs.

    Args:
        json_path: a JSON, JSON-lines, CSV or Parquet file, a URL that begins with http, or a folder of Parquet files
            or of datasets.save_to_disk.
        checkpoint_dir: the checkpoint whose tokenizer is used.
        destination_path: folder for the prepared data.
        columns: keys by their roles: "{prompt: question, chosen: good, rejected: bad}", or "{prompt: question,
            completion: answer, label: verdict}"; context and system go, too.
        validation_file: file with rows for validation, of the same layout; a part of the rows is held out if not given.
        task_data: evaluation sets, a file or folder as for scripts/check_contamination.py: says which prompts are in
            them.
    """
    from lit_gpt.args.curation import ContaminationArgs
    from lit_gpt.data.curate.contamination import check_contamination
    from lit_gpt.data.prepare.given import prepare_given
    from lit_gpt.data.prepare.preferences.encoder import PreferenceEncoder
    from lit_gpt.data.prepare.preferences.layouts import parse_preference, preference_columns

    how = {"parse": preference_columns(columns) if columns else parse_preference, "encoder": PreferenceEncoder}
    prepare_given(json_path, validation_file, hub, destination_path, checkpoint_dir=checkpoint_dir, args=prepare, **how)
    if task_data is not None:
        check_contamination(destination_path, ContaminationArgs(task_data=task_data), checkpoint_dir)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
