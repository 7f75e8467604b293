"""Evaluates a model by HELM itself: its `helm-run` asks our server, and `helm-summarize` makes its tables."""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_gpt.args import HelmArgs
from lit_gpt.args.folders import require_file, require_there
from lit_gpt.errors import UserError
from lit_gpt.evaluation.helm.conf import challenge, read_conf, write_conf
from lit_gpt.evaluation.helm.programs import ended_by_signals, helm_program, run_program, served
from lit_gpt.evaluation.helm.results import Row, read_rows

_SUITE = "v1"
_OUTPUT, _CONF = "benchmark_output", "run_specs.conf"
_DATA = ("scenarios", "perturbations")
"""Folders of HELM's output that hold what it fetched."""
_FAILED = re.compile(r"Error when running (\S.*?):?$", re.MULTILINE)


def run_helm(flags: Sequence[str | Path], args: HelmArgs, out_dir: Path) -> tuple[dict[str, Row], list[str]]:
    """Returns the scores that HELM gives a model, by scenario, and the names of runs that failed.

    Args:
        flags: those of `scripts/serve.py` that say which model.
        out_dir: folder for all that HELM and the server write; scores of an earlier run there are replaced.

    Raises:
        UserError: HELM is not installed, the server does not start, or no run succeeds.
    """
    programs = [helm_program(name) for name in ("helm-run", "helm-summarize")]
    conf = _make_folder(args, out_dir)
    n = str(args.max_eval_instances)
    ask = [programs[0], "--conf-paths", conf.name, "--suite", _SUITE, "--max-eval-instances", n]
    with ended_by_signals(), served([*flags, "--max_rows", str(args.batch_size)], out_dir / "server.log") as server:
        address, process = server
        log = out_dir / "helm-run.log"
        print(f"the model is served on {address}; HELM asks it, and says so in {log}", file=sys.stderr)
        status = run_program(
            [*ask, "-n", str(args.batch_size)],
            folder=out_dir,
            log=log,
            environment={"HELM_HTTP_MODEL_BASE_URL": address},
            server=process,
        )
    said = log.read_text(encoding="utf-8", errors="replace")
    rows = read_rows(_suite(out_dir), read_conf(conf))
    failed = _FAILED.findall(said) if status else []
    if not rows or (status and not failed):
        raise UserError(f"helm-run failed: {_reason(said)}; {log} has all that it said")
    with ended_by_signals():
        log = out_dir / "helm-summarize.log"
        if run_program([programs[1], "--suite", _SUITE], folder=out_dir, log=log, environment={}):
            said = log.read_text(encoding="utf-8", errors="replace")
            raise UserError(f"helm-summarize failed: {_reason(said)}; {log} has all that it said")
    return rows, failed


def _suite(out_dir: Path) -> Path:
    return out_dir / _OUTPUT / "runs" / _SUITE


def _make_folder(args: HelmArgs, out_dir: Path) -> Path:
    """Makes the folder that HELM works in, with its list of runs and links to the data; returns the list.

    Raises:
        UserError: the list or the data cannot be read.
    """
    if args.conf is not None:
        require_file("conf", args.conf)
    entries = challenge() if args.conf is None else read_conf(args.conf)
    if args.scenario_data != HelmArgs.scenario_data:
        require_there("scenario_data", args.scenario_data)
    shutil.rmtree(_suite(out_dir), ignore_errors=True)
    (out_dir / _OUTPUT).mkdir(parents=True, exist_ok=True)
    for name in _DATA:
        data, link = args.scenario_data / name, out_dir / _OUTPUT / name
        data.mkdir(parents=True, exist_ok=True)
        if not os.access(data, os.W_OK):
            raise UserError(f"--scenario_data: HELM writes lock files into {data}, which is not writable; copy it")
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            raise UserError(
                f"{link} is a folder of another run of HELM; pass it as --scenario_data, or another --out_dir"
            )
        link.symlink_to(data.resolve(), target_is_directory=True)
    conf = out_dir / _CONF
    if args.conf is None:
        write_conf(conf, entries)
    elif args.conf.resolve() != conf.resolve():
        shutil.copyfile(args.conf, conf)
    return conf


def _reason(said: str) -> str:
    """Returns the last line of what HELM said that names an error, or the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or ["it said nothing"])[-1][:300]
