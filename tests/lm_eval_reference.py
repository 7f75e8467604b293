"""lm-eval's own `hf` model, which every number and prompt of ours is compared with."""

import json
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lit_gpt.checkpoints.base import load_base
from lit_gpt.evaluation.harness import LitLM
from lit_gpt.lightning import Fabric
from lit_gpt.tokenizer import Tokenizer


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def theirs(folder: Path, batch_size: int, bos: bool | None = None) -> HFLM:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=bos)


def ours(folder: Path, batch_size: int, style: str | None = None) -> LitLM:
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    model, _ = load_base(fabric, folder)
    return LitLM(model, Tokenizer(folder), batch_size, style, name="tiny", autocast=fabric.autocast)


def assert_same_answers(a: list[tuple[float, bool]], b: list[tuple[float, bool]], atol: float) -> None:
    assert [greedy for _, greedy in a] == [greedy for _, greedy in b]
    torch.testing.assert_close(torch.tensor([v for v, _ in a]), torch.tensor([v for v, _ in b]), atol=atol, rtol=1e-5)


def write_rows(path: Path, rows: list[dict], as_list: bool = False) -> Path:
    path.write_text(json.dumps(rows, indent=1) if as_list else "\n".join(json.dumps(r) for r in rows) + "\n")
    return path
