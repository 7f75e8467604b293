"""Who may import whom. A new arrow is a decision: change the table and say why in the commit."""

import ast

import pytest
from conftest import ROOT

ANY = {"args", "errors"}  # plain data, imported from everywhere
MAY_IMPORT = {  # part of lit_gpt -> parts it may import
    "args": {"args"},
    "errors": set(),
    "cli": set(),
    "families": {"families", "config"},  # config for annotations only
    "config": {"families"},  # inside from_name only
    "rope": {"config"},
    "fused": set(),
    "lean": {"fused"},
    "matmul": set(),
    "linear": {"lean", "matmul"},
    "packed": {"", "fused", "matmul", "packed"},
    "dropout": {"fused"},
    "mlp": {"config", "lean", "linear"},
    "norms": {"config", "lean"},
    "neftune": {"packed"},
    "model": {"config", "linear", "matmul", "mlp", "neftune", "norms", "packed", "rope"},
    "lora": {"dropout", "lean", "linear", "lora", "matmul", "model"},
    "adapter": {"config", "matmul", "model", "packed"},
    "adapter_v2": {"", "adapter", "fused", "linear", "model"},
    "full": {"model"},
    "quantize": {"fused", "linear", "matmul", "quantize"},
    "tokenizer": {"tokenizer"},
    "prompts": {"prompts", "tokenizer"},
    "resources": set(),
    "files": {"files"},
    "checkpoint": {"", "adapter", "adapter_v2", "config", "convert", "files", "full", "lora", "model", "quantize"}
    | {"rope"},
    "convert": {"", "files", "config", "families", "lora", "model", "prompts", "rope", "tokenizer", "convert"},
    "interchange": {"", "checkpoint", "convert", "files", "prompts"},
    "merging": {"", "checkpoint", "convert", "data", "files", "linear", "lora", "merging", "model", "prompts"}
    | {"quantize", "tokenizer"},
    "data": {"", "checkpoint", "convert", "files", "packed", "tokenizer", "prompts", "data"},
    "generation": {"config", "data", "fused", "linear", "mlp", "model", "prompts", "quantize", "rope", "tokenizer"}
    | {"generation", "resources"},  # data reads a conversation as it reads rows
    "training": {"", "checkpoint", "config", "convert", "data", "evaluation", "files", "fused", "linear", "matmul"}
    | {"merging", "model", "packed", "quantize", "report", "resources", "tokenizer", "training"},
    "report": {"files", "report"},
    "evaluation": {"", "checkpoint", "data", "files", "fused", "generation", "lora", "model", "prompts", "tokenizer"}
    | {"evaluation"},
    "hub": {"families", "hub"},
}
SCRIPTS = ("scripts", "finetune", "generate", "eval")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module, [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            yield from ((a.name, []) for a in node.names)


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_follow_the_arrows(part):
    place = ROOT / "lit_gpt" / part
    for path in place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
        for module, names in imports(path):
            assert module.split(".")[0] not in (*SCRIPTS, "demo", "tests"), f"{path} imports {module}"
            if module.split(".")[0] == "lit_gpt":
                parts = [module.split(".")[1]] if "." in module else names
                for other in parts:
                    assert other in MAY_IMPORT[part] | ANY, f"{path} imports lit_gpt.{other}"


def test_every_part_of_the_library_is_in_the_table():
    parts = {p.stem for p in (ROOT / "lit_gpt").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert parts - {"__init__", "__pycache__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("folder", SCRIPTS)
def test_scripts_import_the_library_and_never_each_other_and_stay_short(folder):
    for path in (ROOT / folder).glob("*.py"):
        for module, _ in imports(path):
            assert module.split(".")[0] not in (*SCRIPTS, "sys.path"), f"{path} imports {module}"
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 75, path
