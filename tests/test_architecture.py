"""Who may import whom. A new arrow is a decision: change the table and say why in the commit."""

import ast

import pytest
from conftest import ROOT

ANY = {"args", "errors"}  # plain data, imported from everywhere
MAY_IMPORT = {  # part of lit_gpt -> parts it may import
    "args": {"args"},
    "errors": set(),
    "cli": {"cli", "places"},
    "places": set(),
    "families": {"config", "families"},  # config for annotations only
    "config": {"families"},  # inside from_name only
    "rope": {"config"},
    "fused": set(),
    "lean": {"fused"},
    "matmul": set(),
    "linear": {"lean", "matmul"},
    "packed": {"fused", "matmul", "packed"},
    "dropout": {"fused"},
    "mlp": {"config", "lean", "linear"},
    "norms": {"config", "lean"},
    "neftune": {"packed"},
    "model": {"config", "linear", "matmul", "mlp", "neftune", "norms", "packed", "rope"},
    "lora": {"dropout", "lean", "linear", "lora", "matmul", "model"},
    "adapter": {"config", "matmul", "model", "packed"},
    "adapter_v2": {"adapter", "fused", "linear", "model"},
    "full": {"model"},
    "quantize": {"fused", "linear", "matmul", "quantize"},
    "tokenizer": {"tokenizer"},
    "prompts": {"prompts", "tokenizer"},
    "resources": set(),
    "files": {"files"},
    "checkpoint": {"adapter", "adapter_v2", "config", "convert", "files", "full", "lora", "model", "places"}
    | {"prompts", "quantize", "rope"},
    "convert": {"config", "convert", "families", "files", "linear", "lora", "model", "places", "prompts"}
    | {"rope", "tokenizer"},
    "interchange": {"checkpoint", "convert", "files", "prompts"},
    "merging": {"checkpoint", "convert", "data", "files", "linear", "lora", "merging", "model", "prompts"}
    | {"quantize", "tokenizer"},
    "data": {"convert", "data", "files", "packed", "prompts", "tokenizer"},
    "generation": {"config", "data", "fused", "generation", "linear", "mlp", "model", "prompts", "quantize"}
    | {"resources", "rope", "tokenizer"},
    "training": {"checkpoint", "config", "convert", "data", "evaluation", "files", "fused", "linear", "matmul"}
    | {"merging", "model", "packed", "places", "quantize", "report", "resources", "tokenizer", "training"},
    "report": {"files", "report"},
    "evaluation": {"data", "evaluation", "files", "generation", "model", "prompts", "tokenizer"},
    "hub": {"convert", "families", "hub"},  # whether the converter will take what is about to be fetched
    "gguf_adapter": {"checkpoint", "convert", "files"},
}
SCRIPTS = ("scripts", "finetune", "generate", "eval")


def imports(path):
    """(module, names) of each import of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module, [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            yield from ((a.name, []) for a in node.names)


def arrows(part):
    """Parts of lit_gpt that a part imports, each with a file that does."""
    place = ROOT / "lit_gpt" / part
    found = {}
    for path in place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
        for module, names in imports(path):
            assert module.split(".")[0] not in (*SCRIPTS, "demo", "tests"), f"{path} imports {module}"
            if module.split(".")[0] == "lit_gpt":
                found |= dict.fromkeys([module.split(".")[1]] if "." in module else names, path)
    return found


def changes_the_path(text):
    """Whether a program looks at sys.path, under whatever name."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and node.attr == "path" and ast.unparse(node.value) == "sys":
            return True
        if isinstance(node, ast.Import) and any(a.name == "sys" and a.asname for a in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "sys" and any(a.name in "path*" for a in node.names):
            return True
    return False


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_follow_the_arrows_and_each_arrow_is_used(part):
    found = arrows(part)
    for other, path in found.items():
        assert other in MAY_IMPORT[part] | ANY, f"{path} imports lit_gpt.{other}"
    assert not MAY_IMPORT[part] - found.keys(), f"nothing in lit_gpt/{part} imports these: take them out of the table"


def test_every_part_of_the_library_is_in_the_table():
    parts = {p.stem for p in (ROOT / "lit_gpt").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert parts - {"__init__", "__pycache__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("folder", SCRIPTS)
def test_scripts_import_the_library_and_never_each_other_and_stay_short(folder):
    for path in (ROOT / folder).glob("*.py"):
        text = path.read_text(encoding="utf-8")
        for module, _ in imports(path):
            assert module.split(".")[0] not in SCRIPTS, f"{path} imports {module}"
        assert not changes_the_path(text), f"{path} puts something on the path"
        assert len(text.splitlines()) <= 75, path


def test_what_puts_something_on_the_path_is_seen():
    for text in ("import sys\nsys.path.insert(0, '.')", "from sys import path", "import sys as s\ns.path.append('.')"):
        assert changes_the_path(text)
    for text in (
        "import sys\nsys.exit()",
        "from pathlib import Path\nPath('sys.path')",
        "import os\nos.path.join('a')",
    ):
        assert not changes_the_path(text)
