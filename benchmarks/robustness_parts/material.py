"""Makes the tiny valid checkpoints, data sets and runs that the campaign damages, and calls scripts on them."""

import contextlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import MISSING
from functools import cache
from pathlib import Path
from typing import Any

from conftest import SHAPES, tiny_hf, write_tokenizer
from robustness_parts.campaign import in_child

from lit_gpt.cli.flags import arguments_of, flags_of
from lit_gpt.cli.paths import check_paths
from lit_gpt.cli.words import read
from lit_gpt.errors import CommandLineError

ROOT = Path(__file__).parent.parent.parent
WORDS = ("ab", "cd", "the", "king")
ROWS = [{"instruction": f"say {w} {n} times", "input": "", "output": " ".join([w] * n)}
        for w in WORDS for n in range(1, 7)]  # fmt: skip
TRAIN = ("--batch_size", 6, "--micro_batch_tokens", 64, "--learning_rate", 0.01, "--precision", "32-true")
TRAIN += ("--compile", "false", "--save_interval", 2, "--eval_interval", 3)
UNCHECKED = {"scripts/convert_hf_checkpoint.py": ("checkpoint_dir",)}
UNCHECKED |= {"scripts/convert_peft_adapter.py": ("finetuned_path",)}
METHODS = ("lora", "adapter", "adapter_v2", "full")


@cache
def main_of(script: str) -> Callable[..., None]:
    """Returns the `main` of a script of the project."""
    spec = importlib.util.spec_from_file_location(script.replace("/", "_")[:-3], ROOT / script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def calling(script: str, *words: object, cwd: Path) -> Callable[[], None]:
    """Returns what runs a script as from a shell in `cwd`, its own reading of the words and its checks included.

    As `lit_gpt.cli.run` does, but for the end: errors of the user come out as they are.
    """
    main = main_of(script)  # imported before the fork

    def call() -> None:
        os.chdir(cwd)
        flags = flags_of(main)
        asked = read([str(word) for word in words], flags)
        values = {name: asked.values.get(name, flag.default) for name, flag in flags.items()}
        if missing := [name for name, value in values.items() if value is MISSING]:
            raise CommandLineError(f"missing --{missing[0]}")
        arguments = arguments_of(main, values)
        check_paths(main, values, UNCHECKED.get(script, ()))
        main(**arguments)

    return call


class Material:
    """The folders of valid material, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, Path] = {}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def get(self, name: str, make: Callable[[Path], Any]) -> Path:
        """Returns the folder called `name`, which `make` fills in a process of its own the first time."""
        if name not in self.made:
            path = self.folder / name
            path.mkdir(parents=True)
            in_child(lambda: make(path))
            self.made[name] = path
        return self.made[name]

    def hf(self, kind: str) -> Path:
        """Returns a folder as downloaded, of one of SHAPES."""

        def make(folder: Path) -> None:
            tiny_hf(kind).save_pretrained(folder)
            write_tokenizer(folder)

        return self.get(f"hf-{kind}", make)

    def lit(self, kind: str = "llama-gqa") -> Path:
        """Returns a converted checkpoint."""
        source = self.hf(kind)

        def make(folder: Path) -> None:
            shutil.copytree(source, folder, dirs_exist_ok=True)
            calling("scripts/convert_hf_checkpoint.py", "--checkpoint_dir", folder, cwd=folder.parent)()

        return self.get(f"lit-{kind}", make)

    def data(self) -> Path:
        """Returns a prepared data set, whose checkpoint is `lit()`."""
        checkpoint = self.lit()

        def make(folder: Path) -> None:
            (folder / "rows.json").write_text(json.dumps(ROWS))
            flags = ("--checkpoint_dir", checkpoint, "--json_path", folder / "rows.json")
            flags += ("--destination_path", folder / "data", "--prompt_style", "plain", "--test_split_fraction", 0.2)
            calling("scripts/prepare_json.py", *flags, cwd=folder)()

        return self.get("data", make) / "data"

    def run(self, method: str = "lora") -> Path:
        """Returns the folder of a finished run with two checkpoints."""
        checkpoint, data = self.lit(), self.data()

        def make(folder: Path) -> None:
            flags = ("--checkpoint_dir", checkpoint, "--data_dir", data, "--out_dir", folder / "out")
            flags += (*TRAIN, "--epochs", 2, *flags_of_method(method))
            calling(f"finetune/{method}.py", *flags, cwd=folder)()

        return self.get(f"run-{method}", make) / "out"

    def peft(self) -> Path:
        """Returns an adapter of PEFT, made of `run()`."""
        checkpoint, run = self.lit(), self.run()

        def make(folder: Path) -> None:
            flags = ("--to", "peft", "--checkpoint_dir", checkpoint, "--finetuned_path", run)
            flags += ("--peft_dir", folder / "adapter")
            calling("scripts/convert_peft_adapter.py", *flags, cwd=folder)()

        return self.get("peft", make) / "adapter"

    def gguf(self, kind: str) -> Path:
        """Returns a folder with one gguf file, and the size of its header in header.txt."""
        checkpoint = self.lit(kind)

        def make(folder: Path) -> None:
            import gguf

            flags = ("--checkpoint_dir", checkpoint, "--output_dir", folder / "out", "--format", "gguf")
            calling("scripts/convert_lit_checkpoint.py", *flags, cwd=folder)()
            (path,) = (folder / "out").glob("*.gguf")
            path.rename(folder / "tiny.gguf")
            (folder / "header.txt").write_text(str(gguf.GGUFReader(folder / "tiny.gguf").data_offset))

        return self.get(f"gguf-{kind}", make)

    def sentencepiece(self) -> Path:
        """Returns a converted checkpoint whose tokenizer is a tokenizer.model."""
        checkpoint = self.lit()

        def make(folder: Path) -> None:
            import sentencepiece

            shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (folder / name).unlink()
            text = [f"the {w} said {n} words of the kings and queens" for w in WORDS for n in range(99)]
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(text), model_prefix=str(folder / "tokenizer"), vocab_size=290,
                model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2, num_threads=1,
            )  # fmt: skip
            (folder / "tokenizer.vocab").unlink()

        return self.get("sentencepiece", make)


def flags_of_method(method: str) -> tuple[object, ...]:
    """Returns the flags with which a method trains a model of two layers."""
    return ("--adapter_start_layer", 0) if method.startswith("adapter") else ()


def copied(source: Path, folder: Path, *without: str) -> Path:
    """Copies a folder of valid material; returns the copy."""
    return Path(shutil.copytree(source, folder, symlinks=True, ignore=shutil.ignore_patterns(*without)))


def kinds() -> list[str]:
    """Returns the kinds of models that can be made with the transformers that is installed."""
    import transformers

    return [kind for kind, (name, _) in SHAPES.items() if hasattr(transformers, name)]


def import_all() -> None:
    """Imports what the scripts import, so that a forked process has it; nothing of it may start a thread."""
    import pkgutil

    import lit_gpt

    for module in pkgutil.walk_packages(lit_gpt.__path__, "lit_gpt."):
        with contextlib.suppress(ImportError):  # a package that is not installed
            importlib.import_module(module.name)
    for name in ("gguf", "jinja2", "matplotlib.pyplot", "pyarrow.parquet", "sentencepiece", "tokenizers", "yaml"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
