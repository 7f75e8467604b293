"""What is submitted: a run and its base, as they stand on this machine, and what of them a submission refuses."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from lit_gpt.args.folders import RUN, WEIGHTS, require_checkpoint, run_folder
from lit_gpt.args.submission import RefusalArgs, SubmissionArgs
from lit_gpt.checkpoints.base import digest_of
from lit_gpt.checkpoints.configs import read_config
from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.checkpoints.runs import Run, read_run, require_base
from lit_gpt.checkpoints.trained import CHECKPOINTS, load_trained, trained_path
from lit_gpt.data.store import META
from lit_gpt.errors import UserError
from lit_gpt.files.checksums import contents_of
from lit_gpt.hub.download import REVISION
from lit_gpt.merge.record import merged_runs
from lit_gpt.merge.write import identity_of
from lit_gpt.records import read_object
from lit_gpt.submission.rules import forbidden
from lit_gpt.training.run.folder import PLAN

_MERGEABLE = "lora"
"""The method whose runs are merged into the weights; runs of the others are served over their base."""


@dataclass(frozen=True)
class Subject:
    """A run and its base."""

    run_dir: Path
    run: Run
    checkpoint_dir: Path
    repo: str | None
    """org/name of the base on the hub; None if nobody knows."""
    revision: str | None
    """Commit of the base on the hub; None if nobody knows."""
    other_file: str | None = None
    """A gguf file that the base was converted from, which nobody knows to be that of `repo`; None if there is none."""

    @property
    def trained(self) -> Path:
        """The file of the trained weights."""
        return trained_path(self.run_dir, self.run.method)

    @property
    def is_merged(self) -> bool:
        """Whether the served model is a merged one."""
        return self.run.method == _MERGEABLE

    @property
    def sources(self) -> list[str]:
        """Paths, addresses and names of what the run was trained on."""
        return list(_sources(self.run))


def read_subject(finetuned_path: Path, checkpoint_dir: Path | None, args: SubmissionArgs) -> Subject:
    """Returns a run and its base, after checking that they go together.

    Raises:
        UserError: they do not, or one of them is not there.
    """
    run_dir = run_folder(finetuned_path)
    run = read_run(run_dir)
    checkpoint_dir = checkpoint_dir or Path(run.base)
    require_checkpoint(checkpoint_dir)
    _, specs, get = open_lit(checkpoint_dir)
    require_base(run, run_dir, checkpoint_dir, digest_of(specs, get))
    repo = args.base_repo or read_config(checkpoint_dir).hf_repo or None
    noted = checkpoint_dir / ".download" / REVISION
    revision = args.base_revision or (noted.read_text(encoding="utf-8").strip() if noted.is_file() else None)
    other = None if args.base_repo or noted.is_file() else _gguf_of(checkpoint_dir)
    return Subject(run_dir, run, checkpoint_dir, repo=repo, revision=revision, other_file=other)


def _gguf_of(checkpoint_dir: Path) -> str | None:
    """Returns the name of the gguf file that a checkpoint was converted from; None if it has other files of weights."""
    if any(checkpoint_dir.glob("*.safetensors")) or any(checkpoint_dir.glob("pytorch_model*.bin")):
        return None
    return next((path.name for path in sorted(checkpoint_dir.glob("*.gguf"))), None)


def refuse(subject: Subject, args: RefusalArgs) -> None:
    """Checks what the challenge, or whoever has to repeat the run, would not take.

    Raises:
        UserError: the model is not one base with one whole run; the data is forbidden, or has longer samples than the
            challenge asks.
    """
    _refuse_patchwork(subject)
    if found := forbidden(subject.sources, args.allow_data):
        name, why = found
        raise UserError(f"the run was trained on {name}, which the challenge forbids: {why}; train on other data, or "
                        f"pass --allow_data {name} if your rules are others")  # fmt: skip
    longest, n = _lengths(subject.run, args.max_sample_tokens)
    if longest > args.max_sample_tokens:
        some = f"{n:,} samples have" if n else "there are samples with"
        raise UserError(
            f"{some} more than {args.max_sample_tokens:,} tokens, the longest {longest:,}, and the challenge asks "
            f"nothing longer; prepare the data with --max_seq_length {args.max_sample_tokens}, or pass "
            f"--max_sample_tokens {longest}"
        )


def _refuse_patchwork(subject: Subject) -> None:
    """Checks that the model is one base and one run, which is whole; raises UserError if it is not."""
    run_dir = subject.run_dir
    if not subject.trained.is_file():
        kept = sorted((run_dir / CHECKPOINTS).glob("step-*"))
        hint = (
            f"; --resume true goes on from {kept[-1].name}, or --finetuned_path {kept[-1]} takes that" if kept else ""
        )
        raise UserError(f"{run_dir} has no {subject.trained.name}: the run did not end{hint}")
    trained = load_trained(subject.trained)
    plan = run_dir / PLAN
    if plan.is_file() and not read_object(plan).get("outcome"):
        raise UserError(f"{run_dir} is a run that was interrupted, and its weights are those of its last save; end it "
                        "with --resume true")  # fmt: skip
    if earlier := merged_runs(subject.checkpoint_dir):
        count = "another run" if len(earlier) == 1 else f"{len(earlier)} other runs"
        raise UserError(f"{count} is merged into the base {subject.checkpoint_dir} already, and whoever repeats this "
                        "one has to begin with what can be downloaded; train one run on the original base")  # fmt: skip
    merged = run_dir / "merged"
    if (merged / WEIGHTS).is_file() and [one.get("weights") for one in merged_runs(merged)] != [identity_of(trained)]:
        raise UserError(f"{merged} is merged of other weights than those of {subject.trained.name} beside it: one of "
                        "them is not what you trained; delete it, or merge again")  # fmt: skip


def _lengths(run: Run, most: int) -> tuple[int, int]:
    """Returns the tokens of the longest sample, and how many have more than `most`: by the data, else by the record."""
    folder = Path(run.data.get("folder") or "")
    if (folder / META).is_file() and run.data.get("folder"):
        lengths = np.concatenate([np.diff(np.load(path)) for path in sorted(folder.glob("*.offsets.npy"))])
        return int(lengths.max()), int((lengths > most).sum())
    longest = run.data.get("longest")
    found = longest.values() if isinstance(longest, dict) else ()
    return max((n for n in found if isinstance(n, int)), default=0), 0


def _sources(run: Run) -> Iterator[str]:
    """Yields what the record of a run says of where its rows came from."""
    for key in ("source", "validation_source"):
        if run.data.get(key):
            yield str(run.data[key])
    mix = run.data.get("mix")
    for entry in (mix.get("sources", {}) if isinstance(mix, dict) else {}).values():
        yield str(entry.get("source") or entry.get("path") or "")
    words = run.data.get("command") or []
    for flag, value in pairwise(words):
        if flag in ("--dataset", "--data_file_url", "--json_path"):
            yield value
    earlier = run.training.get("sft_run")
    if earlier and (run_folder(Path(earlier)) / RUN).is_file():  # what the run went on from has learned, too
        yield from _sources(read_run(run_folder(Path(earlier))))


def contents_of_base(checkpoint_dir: Path) -> str:
    """Returns a hash of all weights of a checkpoint, by the checksums in their file."""
    return contents_of(checkpoint_dir / WEIGHTS).digest
