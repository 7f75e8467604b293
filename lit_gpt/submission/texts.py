"""The texts of a submission: two Dockerfiles, the app that uvicorn starts, the script that trains again, the notes."""

import json
from pathlib import PurePosixPath

from lit_gpt.args.submission import SubmissionArgs
from lit_gpt.submission.commands import DATA, Repetition, shell
from lit_gpt.submission.rules import license_of_base, licenses_of_data
from lit_gpt.submission.subject import Subject
from lit_gpt.submission.toolkit import TOOLKIT

MAIN, DOCKERFILE, DOCKERFILE_TRAIN, TRAIN = "main.py", "Dockerfile", "Dockerfile.train", "train.sh"
CONFIG, PINS, NOTES, MODEL, RUN_FOLDER = "train.yaml", "constraints.txt", "NOTES.md", "model", "run"
"""Names of the files and folders of a submission."""
_WORKDIR = "/submission"
COMMAND = ("uvicorn", "main:app", "--host", "0.0.0.0", "--port", "80")
"""How the challenge starts a submission."""
_SETUP = f"""\
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore HF_HUB_DISABLE_TELEMETRY=1
WORKDIR {_WORKDIR}
COPY {PINS} ./
COPY {TOOLKIT} {TOOLKIT}
RUN pip install -c {PINS} "./{TOOLKIT}[EXTRAS]"
"""


def folder_of_base(subject: Subject) -> str:
    """Returns the folder that the base has in the images."""
    return str(PurePosixPath("checkpoints", subject.repo or f"local/{subject.checkpoint_dir.resolve().name}"))


def _download(subject: Subject) -> list[str]:
    """Returns the commands that fetch and convert the base, as words after `python`."""
    assert subject.repo is not None
    revision = ["--revision", subject.revision] if subject.revision else []
    fetch = [f"{TOOLKIT}/scripts/download.py", "--repo_id", subject.repo, *revision]
    convert = [f"{TOOLKIT}/scripts/convert_hf_checkpoint.py", "--checkpoint_dir", folder_of_base(subject)]
    return [shell(fetch).replace(" \\\n    ", " "), shell(convert).replace(" \\\n    ", " ")]


def dockerfile(subject: Subject, args: SubmissionArgs) -> str:
    """Returns the Dockerfile of the image that answers."""
    base = folder_of_base(subject)
    extras = "serve,quantize" if _bitsandbytes(subject, args) else "serve"
    lines = [
        "# Serves the model on port 80, as the NeurIPS 2023 LLM Efficiency Challenge starts it.",
        f"FROM {args.image}",
        _SETUP.replace("EXTRAS", extras).rstrip(),
    ]
    if args.weights == "fetch" or not subject.is_merged:
        lines.append(f"COPY {RUN_FOLDER} {RUN_FOLDER}")
    if args.weights == "copy":
        lines.append(f"COPY {MODEL} {MODEL}")
    else:
        commands = _download(subject)
        if subject.is_merged:
            merge = f"python {TOOLKIT}/scripts/merge_lora.py --checkpoint_dir {base} --finetuned_path {RUN_FOLDER}"
            # in one step, so that no layer of the image keeps the base
            commands += [f"{merge} --out_dir {MODEL}{_into(args)}", "rm -rf checkpoints"]
        lines.append("RUN " + " \\\n    && ".join(commands))
    lines += [f"COPY {MAIN} ./", "EXPOSE 80", f"CMD {json.dumps(COMMAND)}"]
    return "\n".join(lines) + "\n"


def _into(args: SubmissionArgs) -> str:
    """Returns the flag of the merge that says into which weights, if it is not the default."""
    return "" if args.merge_base == "16bit" else f" --base {args.merge_base}"


def dockerfile_train(subject: Subject, args: SubmissionArgs, repetition: Repetition) -> str:
    """Returns the Dockerfile of the image that repeats the training."""
    needs = {
        "quantize": _bitsandbytes(subject, args),
        "datasets": any("--dataset" in words for words in repetition.prepare),
    }
    extras = [name for name, wanted in needs.items() if wanted]
    lines = [
        "# Repeats the run: docker run --gpus all, with a volume at /submission/out for what it leaves.",
        f"FROM {args.image}",
        _SETUP.replace("[EXTRAS]", f"[{','.join(extras)}]" if extras else "").rstrip(),
    ]
    if repetition.files:
        lines.append(f"COPY {DATA} {DATA}")
    lines += [f"COPY {TRAIN} {CONFIG} ./", f'CMD ["bash", "{TRAIN}"]']
    return "\n".join(lines) + "\n"


def _bitsandbytes(subject: Subject, args: SubmissionArgs) -> bool:
    """Returns whether an image needs bitsandbytes."""
    kinds = (args.serve_quantize, subject.run.quantize, subject.run.training.get("optimizer"))
    return any(kind is not None and ("bnb." in kind or "paged" in kind or "8bit" in kind) for kind in kinds)


def main_py(subject: Subject, args: SubmissionArgs) -> str:
    """Returns the module whose `app` uvicorn starts; a merged model says itself how it is asked."""
    checkpoint = MODEL if subject.is_merged or args.weights == "copy" else folder_of_base(subject)
    run = "" if subject.is_merged else f', finetuned_path=HERE / "{RUN_FOLDER}"'
    quantize = f', quantize="{args.serve_quantize}"' if args.serve_quantize else ""
    return f'''"""The application that `uvicorn main:app` starts: /process, /tokenize and /decode of the challenge."""

from pathlib import Path

from lit_gpt.args import ServeArgs
from lit_gpt.serve.asgi import application
from lit_gpt.serve.load import What

HERE = Path(__file__).resolve().parent
app = application(What(HERE / "{checkpoint}"{run}{quantize}), ServeArgs())
'''


def train_sh(subject: Subject, args: SubmissionArgs, repetition: Repetition) -> str:
    """Returns the script that downloads, prepares and finetunes within the hours it has."""
    run, base = subject.run, folder_of_base(subject)
    finetune = [
        f"{TOOLKIT}/finetune/{run.script}.py",
        "--config", CONFIG, "--checkpoint_dir", base, "--data_dir", "prepared/data", "--out_dir", "out/run",
    ]  # fmt: skip
    limit = _seconds(run.training.get("max_time"))
    own = f"\nif (( left > {limit} )); then left={limit}; fi" if limit else ""
    merge = shell([f"{TOOLKIT}/scripts/merge_lora.py", "--checkpoint_dir", base, "--finetuned_path", "out/run",
                   "--out_dir", "out/model", *_into(args).split()])  # fmt: skip
    return f"""#!/usr/bin/env bash
# Repeats the run: downloads the base, prepares the data and finetunes, all within {args.hours:g} hours.
set -euo pipefail
cd "$(dirname "$0")"

{chr(10).join(_download(subject))}

{(chr(10) * 2).join(map(shell, repetition.prepare))}

# What is left of the time, less a margin for merging, is the limit of the finetuning.
left=$(( {round(3600 * args.hours)} - SECONDS - {_MARGIN} ))
if (( left < 60 )); then
    echo "error: downloads and data took $SECONDS s, and no time is left to train" >&2
    exit 1
fi{own}
max_time=$(printf '%02d:%02d:%02d' $(( left / 3600 )) $(( left / 60 % 60 )) $(( left % 60 )))

{shell(finetune)} \\
    --max_time "$max_time"
{chr(10) + merge + chr(10) if subject.is_merged else ""}
echo "Trained again in $SECONDS s; docs/submission.md says how to compare it with the first run"
"""


_MARGIN = 900
"""Seconds that are kept for merging and what Docker takes."""


def _seconds(max_time: str | None) -> int | None:
    """Returns the seconds of a --max_time."""
    if max_time is None:
        return None
    hours, minutes, seconds = map(int, max_time.split(":"))
    return 3600 * hours + 60 * minutes + seconds


def notes(subject: Subject, args: SubmissionArgs) -> tuple[str, list[str]]:
    """Returns notes on how the submission is used and on its licenses, and the flags that would tell unknown ones."""
    run = subject.run
    base_license = args.base_license or license_of_base(subject.repo)
    data_licenses = [args.data_license] if args.data_license else licenses_of_data(subject.sources)
    unknown = [f"--{what}_license" for what, known in (("base", base_license), ("data", data_licenses)) if not known]
    how = (
        run.method,
        run.training.get("precision"),
        run.quantize or "not quantized",
        f"seed {run.training.get('seed')}",
    )
    text = f"""# Submission

| | |
|---|---|
| base | {subject.repo or subject.checkpoint_dir.resolve().name}, {subject.revision or "of the main branch"} |
| run | {", ".join(str(part) for part in how if part)} |
| data | {"; ".join(dict.fromkeys(subject.sources)) or "unknown"} |
| prompt style | {run.prompt_style} |

`docker build -t submission .` and `docker run --gpus all -p 8080:80 submission` answer at `localhost:8080/process`.
`docker build -f {DOCKERFILE_TRAIN} -t train .` and `docker run --gpus all -v "$PWD/out:{_WORKDIR}/out" train` train
it again.
`manifest.json` has the hash of every file, and those of base, data and weights.

## Licenses
- Base: {base_license or "not known; ask whoever submits this"}
- Data: {"; ".join(data_licenses) or "not known; ask whoever submits this"}
- The trained weights derive from both. `{TOOLKIT}/` is Apache-2.0.
"""
    return text, unknown
