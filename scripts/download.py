"""Download a model from the Hugging Face hub: weights, tokenizer, configuration.

python scripts/download.py --repo_id openlm-research/open_llama_7b

Without --repo_id it lists the models we know. An interrupted download resumes where it stopped: run it again.
HF_XET_HIGH_PERFORMANCE=1 uses the client's faster transfer, which starts an interrupted file from its beginning.
"""

import shlex
from pathlib import Path


def main(
    repo_id: str | None = None,
    checkpoint_dir: Path = Path("checkpoints"),
    revision: str | None = None,
    token: str | None = None,
    tokenizer_only: bool = False,
    any_model: bool = False,
) -> None:
    """Downloads a model.

    Args:
        repo_id: org/name on the hub, or the short name of a model we know.
        checkpoint_dir: folder in which <org>/<name> is made.
        revision: branch, tag or commit; the main branch if not given.
        token: for gated and private repositories; HF_TOKEN if not given.
        tokenizer_only: do not download the weights.
        any_model: download the weights even if this toolkit cannot convert them.
    """
    if repo_id is None:
        from lit_gpt.families import MODELS

        for fields in MODELS.values():
            print(fields["hf_repo"])
        return

    from lit_gpt.hub.download import download, human

    folder = download(
        repo_id, checkpoint_dir, revision, token=token, tokenizer_only=tokenizer_only, any_model=any_model
    )
    print(f"{folder} is complete ({human(sum(p.stat().st_size for p in folder.iterdir() if p.is_file()))})")
    if not tokenizer_only:
        print(f"next: python scripts/convert_hf_checkpoint.py --checkpoint_dir {shlex.quote(str(folder))}")


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main, unchecked=("checkpoint_dir",))  # the download creates it
