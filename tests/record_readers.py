"""Whole files of names with values of each kind, and what reads them: damaged, each is read or refused in one line."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from campaigns import Case
from conftest import SHAPES, tiny_hf, write_tokenizer
from damage import ODD, flipped, mutated
from runs import run_of, trained

from lit_gpt.args.curation import CheckArgs
from lit_gpt.args.folders import CONFIG, LITGPT_CONFIG, RUN, WEIGHTS
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import Run, load_finetuned, read_run, save_run
from lit_gpt.checkpoints.trained import save_trained, trained_path
from lit_gpt.cli.flags import flags_of
from lit_gpt.cli.words import read as read_words
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.export import styled
from lit_gpt.convert.litgpt import write_litgpt
from lit_gpt.convert.names import from_hf, lit_shapes, plan_from_hf, stream_from_hf
from lit_gpt.convert.peft.runs import read_adapter, write_adapter
from lit_gpt.convert.readers import open_source
from lit_gpt.convert.vocabulary import pad_vocabulary
from lit_gpt.data import store
from lit_gpt.data.curate.check import check
from lit_gpt.fabric import make_fabric
from lit_gpt.files import save_state, spec_of
from lit_gpt.hub.supported import check_supported
from lit_gpt.lightning import Fabric
from lit_gpt.merge.record import MERGED, merged_runs, trained_style
from lit_gpt.merge.write import write_merged
from lit_gpt.methods import METHODS
from lit_gpt.planning.job import config_of
from lit_gpt.prompts import open_style
from lit_gpt.report.page import write_report
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.monitor import METRICS, Monitor, plot_losses
from lit_gpt.training.run.progress import RECORD, position, read_progress, record_digest

SIZES = (*ODD, 4_096, 10**6, 3, 0.25, "auto", "\ud800", "1e999", [1, 2], {"type": "llama3", "factor": 0})
"""Values that take the place of others: odd ones, and sizes that are large but possible."""
FABRIC = Fabric(accelerator="cpu", devices=1, precision="32-true")


@dataclass(frozen=True)
class Kind:
    """A kind of file: a whole one, and all that reads it."""

    path: Path
    read: Callable[[], object]
    value: Any = None
    """Content of a JSON or YAML file; None for other files, which are damaged byte by byte."""

    @property
    def content(self) -> bytes:
        """Bytes of the file that is whole."""
        text = yaml.safe_dump if self.path.suffix == ".yaml" else json.dumps
        return self.path.read_bytes() if self.value is None else text(self.value).encode()


def damaged(kind: Kind, whole: bytes, random: Random) -> bytes:
    """Returns a damaged copy of a file."""
    chance = random.random()
    if kind.value is None or chance < 0.1:
        return flipped(whole, random)
    text = mutated(kind.value, random, SIZES)
    if kind.path.name == RECORD and chance < 0.8:  # as somebody would write it who knows the format
        with suppress(RecursionError, AttributeError):  # nested too deeply, or no object any more
            record = {k: v for k, v in json.loads(text).items() if k != "digest"}
            text = json.dumps(record | {"digest": record_digest(record)})
    if chance > 0.9:
        text = text.replace(
            random.choice('0123456789"'), random.choice(("1e999", "9" * 5_000, "\\ud800", "NaN", "-")), 1
        )
    if kind.path.suffix == ".yaml":
        with suppress(RecursionError, ValueError):  # nested too deeply, or no JSON any more
            text = yaml.safe_dump(json.loads(text))
    if chance > 0.97:
        return text.encode(random.choice(("utf-8-sig", "utf-16", "utf-32")), "surrogatepass")
    return text.encode("utf-8", "surrogatepass")


def alone(kind: Kind) -> Callable[[], object]:
    """Returns what reads the file of a kind in a fork, where the threads of the parent are not."""

    def read() -> None:
        torch.set_num_threads(1)
        kind.read()

    return read


def cases_of(kind: Kind) -> Case:
    """Returns what damages the file of a kind, and returns what reads it."""
    whole = kind.content

    def make(random: Random, _: Path) -> Callable[[], object]:
        kind.path.write_bytes(damaged(kind, whole, random))
        return alone(kind)

    return make


def hugging_face(folder: Path) -> dict[str, Kind]:
    """Returns config.json of each family, beside weights and index of two shards."""
    kinds = {}
    for name in SHAPES:
        at = folder / f"hf-{name}"
        model = tiny_hf(name)
        model.save_pretrained(at, max_shard_size="40KB")
        write_tokenizer(at)

        def read(at: Path = at) -> None:
            check_supported(at / "config.json", "somebody/tiny")
            lit_shapes(config_of(at))
            source = open_source(at)
            config = pad_vocabulary(config_from_hf(source.hf_config, at.name, str(source.config_file)), 1, at)
            plan_from_hf(config, source.specs)
            for _ in stream_from_hf(config, source.names, source.get, rows=config.padded_vocab_size):
                pass

        kinds[f"config.json {name}"] = Kind(at / "config.json", read, json.loads((at / "config.json").read_text()))
    index = at / "model.safetensors.index.json"
    kinds[index.name] = Kind(index, lambda: open_source(at), json.loads(index.read_text()))
    return kinds


def converted(folder: Path) -> Path:
    """Returns the folder of a converted checkpoint with a tokenizer and the files beside it."""
    model = tiny_hf("llama-gqa")
    model.save_pretrained(folder)
    write_tokenizer(folder)
    source = open_source(folder)
    config = config_from_hf(source.hf_config, "tiny", "config.json")
    save_state(from_hf(config, source.names, source.get), folder / WEIGHTS)
    config.to_json(folder / CONFIG)
    tokens = {"264": {"content": "<s>", "special": True}, "265": {"content": "</s>", "special": True, "lstrip": False}}
    stated = json.loads((folder / "tokenizer_config.json").read_text()) | {"added_tokens_decoder": tokens}
    stated |= {"additional_special_tokens": ["<s>"], "chat_template": [{"name": "default", "template": "{{ 1 }}"}]}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [265], "bos_token_id": 264}))
    return folder


def kinds_of_checkpoint(folder: Path) -> dict[str, Kind]:
    """Returns the files of a converted checkpoint, and the configuration of one in litgpt's layout."""
    base = converted(folder / "base")
    kinds = {}

    def read_tokenizer(at: Path = base) -> None:
        tokenizer = Tokenizer(at)
        tokenizer.encode("a<s>b", eos=True), tokenizer.fingerprint(), tokenizer.vocab_size
        with styled(at, "alpaca"):
            pass
        open_style("alpaca", at, tokenizer)

    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        kinds[name] = Kind(base / name, read_tokenizer, json.loads((base / name).read_text()))
    older = folder / "older"  # where the added tokens are in a file of their own
    shutil.copytree(base, older)
    (older / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    added = older / "added_tokens.json"
    added.write_text(json.dumps({"<s>": 264, "</s>": 265}))
    kinds[added.name] = Kind(added, lambda: read_tokenizer(older), json.loads(added.read_text()))
    kinds[CONFIG] = Kind(base / CONFIG, lambda: load_base(FABRIC, base), json.loads((base / CONFIG).read_text()))
    model, _ = load_base(FABRIC, base)
    there = folder / "litgpt"
    there.mkdir()
    state = model.state_dict()
    specs = {name: spec_of(x) for name, x in state.items()}
    write_litgpt(model.config, specs, state.__getitem__, base, there, None, None)
    stated = yaml.safe_load((there / LITGPT_CONFIG).read_text())
    stated |= {"rope_adjustments": {"factor": 2.0}, "sliding_window_indices": [1, 0], "sliding_window_size": 8}
    kinds[LITGPT_CONFIG] = Kind(there / LITGPT_CONFIG, lambda: load_base(FABRIC, there), stated)
    return kinds


def kinds_of_run(folder: Path, base: Path) -> dict[str, Kind]:
    """Returns the files of a run: its record, its plan, what it was merged and exported to."""
    run_dir, kinds = folder / "run", {}
    model, digest = load_base(FABRIC, base)
    run = run_of("lora")
    METHODS["lora"].inject(model, METHODS["lora"].args(**run.method_args))
    run_dir.mkdir()
    save_trained(model, trained_path(run_dir, "lora"))
    data = {
        "folder": "data/x",
        "prompt_style": "alpaca",
        "style_writes": "x",
        "samples": {"train": 3},
        "end_ids": [265],
    }
    save_run(
        Run(**vars(run) | {"base_digest": digest, "base": str(base), "data": data, "prompt_style": "alpaca"}), run_dir
    )
    lines = ["iter,step,samples,seconds,loss,val_loss,learning_rate,tokens_per_sec,iter_time_ms,n_tokens,n_targets"]
    lines += [f"{i},{i},{4 * i},{i}.5,{3 - i / 9:.4f},,0.001,100.0,10.5,64,32" for i in range(1, 9)]
    (run_dir / METRICS).write_text("\n".join([*lines, "8,8,32,9.0,,1.5,,,,,"]) + "\n")
    outcome = [{"what": "peak memory, GB", "planned": 1.1, "actual": 1.0, "error": 0.1, "source": "from the shapes"}]
    plan = {"memory": {"frozen weights": 5 * 10**8}, "work": {"n_steps": 5, "n_rows": 9}, "outcome": outcome}
    (run_dir / "plan.json").write_text(json.dumps(plan))

    def use() -> None:
        _, run = load_finetuned(FABRIC, base, run_dir)
        make_fabric(run.training.get("precision"))  # as merging and validation do
        set(run.data.get("end_ids", ()))  # as generation does
        Path(run.data.get("folder", ""))
        write_report(run_dir)

    kinds[RUN] = Kind(run_dir / RUN, use, json.loads((run_dir / RUN).read_text()))
    kinds["plan.json"] = Kind(run_dir / "plan.json", lambda: write_report(run_dir), plan)

    def draw() -> None:
        write_report(run_dir)
        plot_losses(run_dir / METRICS, run_dir / "loss.png")
        monitor = Monitor(run_dir, 8, 1, goes_on=True)
        monitor.restore({"iter": 5, "samples": 20, "losses": [1.0], "seconds": 3.0})
        monitor.close()

    draw()  # what it imports takes longer than what it does
    kinds[METRICS] = Kind(run_dir / METRICS, draw)
    merged = folder / "merged"
    write_merged(base, run_dir, read_run(run_dir), merged)

    def use_merged() -> None:
        merged_runs(merged)
        with styled(merged, trained_style(merged)):
            pass

    kinds[MERGED] = Kind(merged / MERGED, use_merged, json.loads((merged / MERGED).read_text()))
    adapter = folder / "adapter"
    write_adapter(base, run_dir, adapter, overwrite=False)
    (adapter / RUN).unlink()
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings |= {"rank_pattern": {"q_proj": settings["r"]}, "alpha_pattern": {r".*\.v_proj": 16}}

    def read_as_run() -> None:
        shutil.rmtree(folder / "back", ignore_errors=True)
        read_adapter(base, adapter, folder / "back", None, overwrite=True)

    kinds["adapter_config.json"] = Kind(adapter / "adapter_config.json", read_as_run, settings)
    return kinds


def kinds_of_training(folder: Path, base: Path) -> dict[str, Kind]:
    """Returns the files of a data set and of a checkpoint to resume from."""
    data = folder / "data"
    meta = {
        "checkpoint_dir": str(base), "tokenizer": Tokenizer(base).fingerprint(), "prompt_style": "plain",
        "style_writes": "Q1A1</s>Q2A2</s>", "max_seq_length": 64, "end_ids": [265], "samples": {"train": 8, "val": 8},
        "rows": {s: {"read": 9, "kept": 8, "dropped": {"empty": 1}, "cut": {}} for s in ("train", "val")},
    }  # fmt: skip
    samples = store.stack([([i, 2, 265], [store.IGNORE, 2, 265]) for i in range(8)])
    store.save(data, {"train": samples, "val": samples}, meta)

    def use() -> None:
        store.load(data)
        check(data, CheckArgs())

    kinds = {store.META: Kind(data / store.META, use, json.loads((data / store.META).read_text()))}
    trained(folder / "resumable", save_interval=2, max_steps=2)
    checkpoints = CheckpointStore(folder / "resumable", "lora")
    at = checkpoints.folder_of(2)

    def resume() -> None:
        position(at)
        progress = read_progress(at)
        monitor = Monitor(folder / "resumable", 8, 1, goes_on=True)
        monitor.restore(progress.monitor)
        monitor.close()

    kinds[RECORD] = Kind(at / RECORD, resume, json.loads((at / RECORD).read_text()))
    return kinds


def config_file(folder: Path) -> Kind:
    """Returns a file of flags, as --config takes it."""

    def main(
        names: list[str] | None = None, sources: dict[str, Path] | None = None, rate: float = 1.0, n: int = 1
    ) -> None:
        """Has flags of each type."""

    value = {"names": ["a", "b"], "sources": {"mine": "x.json"}, "rate": 0.5, "n": 3}
    path = folder / "flags.yaml"
    return Kind(path, lambda: read_words(["--config", str(path)], flags_of(main)), value)
