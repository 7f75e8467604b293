"""What is imported before the first token is what the first token needs, and whoever asks for the rest gets it."""

import ast
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from lit_gpt.errors import UserError
from lit_gpt.files import open_state, save_state, tensors
from lit_gpt.foreign import remote, start
from lit_gpt.foreign.remote import _Host
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.tokenizer.guarded import _FIRST_DECODES
from lit_gpt.tokenizer.stream import StreamDecoder

SLOW = ("transformers", "torchmetrics", "torch._dynamo", "sympy", "pandas", "scipy", "matplotlib", "lightning.pytorch")
"""What `import lightning.fabric` imports as it comes, and other packages that take long."""
PROGRAM = """
import runpy, sys
sys.argv = [SCRIPT, "--checkpoint_dir", CHECKPOINT, "--max_new_tokens", "2"]
runpy.run_path(sys.argv[0], run_name="__main__")
found = [name for name in SLOW if name in sys.modules]
assert not found, found

import torch
from lit_gpt.lightning import Fabric
import lightning
assert lightning.fabric.Fabric is Fabric and lightning.__version__
wrapped = lightning.fabric.wrappers.OptimizedModule
assert not isinstance(torch.nn.Linear(2, 2), wrapped)
compiled = torch.compile(torch.nn.Linear(2, 2), backend="eager")
assert isinstance(compiled, wrapped)
fabric = Fabric(accelerator="cpu", devices=1)
assert isinstance(fabric.setup(compiled)._forward_module, torch._dynamo.OptimizedModule)  # and compiled again
assert fabric.setup(compiled)(torch.ones(1, 2)).shape == (1, 2)

assert lightning.Fabric is Fabric, "the rest of Lightning is imported when it is asked for"
from lightning import Trainer
import torchmetrics
assert "lightning.pytorch" in sys.modules and torchmetrics.Metric and Trainer

import lit_gpt.finetuning
assert "lm_eval" not in sys.modules, "a run that is scored on no task does without it"
print("all there")
"""


def test_the_first_token_imports_nothing_slow_and_the_rest_of_fabric_works(checkpoint):
    code = PROGRAM
    values = {"SCRIPT": str(ROOT / "generate/base.py"), "CHECKPOINT": str(checkpoint), "SLOW": SLOW}
    for name, value in values.items():
        code = code.replace(name, repr(value))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0 and done.stdout.endswith("all there\n"), done.stderr[-3_000:]


def test_data_are_prepared_without_torch(checkpoint, tmp_path):
    """Importing it takes 0.2 GB and seconds, and nothing between a file of rows and a data set needs it."""
    rows = [{"instruction": f"What is {i} + {i}?", "output": str(2 * i)} for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    argv = ["--json_path", str(tmp_path / "rows.jsonl"), "--destination_path", str(tmp_path / "data")]
    code = f"""
import runpy, sys
sys.argv = ["", *{argv!r}, "--checkpoint_dir", {str(checkpoint)!r}]
runpy.run_path({str(ROOT / "scripts/prepare_json.py")!r}, run_name="__main__")
assert "torch" not in sys.modules
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0 and "train: no rows are nearly the same" in done.stdout, done.stderr[-3_000:]


def test_no_garbage_is_collected_while_torch_is_imported_and_it_is_afterwards():
    code = """
import gc, sys
from lit_gpt.cli.imports import importing
try:
    with importing():
        assert not gc.isenabled()
        import no_such_module
except ModuleNotFoundError:
    assert gc.isenabled() and gc.get_freeze_count() == 0
found = []
gc.callbacks.append(lambda phase, info: found.append(phase))
with importing():
    from lit_gpt.checkpoints.base import load_base
    assert not found
gc.callbacks.clear()
assert gc.isenabled() and gc.get_freeze_count() > 10_000, "nobody looks through the modules again"
kept = gc.get_freeze_count()
with importing():
    assert gc.isenabled(), "there is little left to import"
assert gc.get_freeze_count() == kept
assert "lit_gpt.families" not in sys.modules, "a checkpoint in our own layout says itself what it is"
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-3_000:]


@pytest.mark.parametrize("script", ["generate/chat.py", "scripts/serve.py", "generate/base.py", "generate/lora.py"])
def test_a_script_that_answers_imports_torch_without_looking_for_garbage(script):
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    blocks = [
        node for node in ast.walk(tree) if isinstance(node, ast.With) and "importing" in ast.unparse(node.items[0])
    ]
    assert any(isinstance(node, ast.ImportFrom) for block in blocks for node in block.body)


@pytest.mark.parametrize("method", ["lora", "adapter", "adapter_v2", "full"])
def test_a_plan_of_a_run_imports_no_compiler(method):
    """A plan puts the method on a model without values; to draw values there imports the compiler."""
    code = f"""
import sys, torch
from lit_gpt.args import AdapterArgs, LoRAArgs
from lit_gpt.config import Config
from lit_gpt.methods import {method} as method
from lit_gpt.model import GPT
sizes = dict(block_size=16, vocab_size=32, padded_vocab_size=32, n_layer=3, n_head=2, n_embd=32, intermediate_size=16)
args = {{"lora": LoRAArgs(), "full": None}}.get("{method}", AdapterArgs(adapter_start_layer=1))
with torch.device("meta"):
    model = GPT(Config(name="x", **sizes))
    method.inject(model, args)
assert "torch._dynamo" not in sys.modules
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-3_000:]


def test_the_library_imports_lightning_in_one_place():
    """Anywhere else, the plain import would bring in what the one place leaves out; loggers bring it in when asked."""
    places = set()
    for path in (ROOT / "lit_gpt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.split(".")[0] == "lightning" for name in names):
                places.add(path.relative_to(ROOT / "lit_gpt").as_posix())
    assert places == {"lightning.py", "training/run/loggers.py"}


def test_a_mapped_file_is_mapped_again_without_reading_its_pickle_again(tmp_path, monkeypatch):
    """A file of 14 GB is mapped 200 times while it is read, and its pickle takes as long as it has tensors."""
    state = {f"{i}.weight": torch.randn(3, i + 1).to(dtype) for i, dtype in enumerate((torch.float32, torch.bfloat16))}
    state["tied"], state["turned"] = state["0.weight"], torch.randn(4, 3).T
    save_state(state, tmp_path / "x.pth")
    monkeypatch.setattr(tensors, "MAPPED_BYTES", 0)  # so that each tensor is read from a mapping of its own
    specs, get = open_state(tmp_path / "x.pth", "again.py")
    opened = []
    monkeypatch.setattr("lit_gpt.files.unpickling.Machine.run", lambda *_: opened.append(1))
    for name in list(specs) * 2:
        assert torch.equal(get(name), state[name]) and get(name).stride() == state[name].stride()
    assert not opened


def test_a_file_that_changes_while_it_is_read_is_not_read_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "MAPPED_BYTES", 0)
    save_state({"a": torch.ones(3), "b": torch.ones(3)}, tmp_path / "x.pth")
    _, get = open_state(tmp_path / "x.pth", "again.py")
    assert get("a").tolist() == [1, 1, 1]
    save_state({"a": torch.zeros(5)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x.pth cannot be read \(it was changed while it was read\)"):
        get("b")


def test_the_process_for_tokenizers_starts_without_being_waited_for():
    hosts = remote._HOSTS["tokenizers"]
    hosts.end()
    start("tokenizers")
    host = hosts.host
    if isinstance(host, _Host):
        assert not host.has_started
    assert hosts.running() is host, "it is the process that the first request goes to"
    if isinstance(host, _Host):
        assert host.has_started


def test_the_first_words_are_decoded_where_the_tokenizer_is_loaded_already(checkpoint):
    tokenizer = Tokenizer(checkpoint)
    ids = tokenizer.encode("The llama")
    decoder = StreamDecoder(tokenizer, ids[:1])
    texts = [decoder.push(i) for i in ids[1:3]]
    assert "local" not in vars(tokenizer.backend), "loading it takes longer than the first token"
    first = tokenizer.decode(ids)
    assert [tokenizer.decode(ids) for _ in range(_FIRST_DECODES)] == [first] * _FIRST_DECODES
    assert "local" in vars(tokenizer.backend), "then each call is one of this process"
    again = StreamDecoder(tokenizer, ids[:1])
    assert [again.push(i) for i in ids[1:3]] == texts
