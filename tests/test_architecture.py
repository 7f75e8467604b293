"""Who may import whom. A new arrow is a decision: change the table and say why in the commit."""

import ast

import pytest
from conftest import ROOT

ANY = {"args", "errors", "layer_heads", "records", "__version__"}  # plain data and its checks, imported from everywhere
MAY_IMPORT = {  # part of lit_gpt -> parts that it may import besides itself and ANY, all of them further up
    "errors": set(),
    "records": set(),
    "args": set(),
    "resources": set(),
    "lightning": set(),
    "fabric": {"lightning", "resources"},
    "cli": set(),
    "files": set(),
    "foreign": set(),
    "tokenizer": {"foreign"},
    "prompts": {"foreign", "tokenizer"},
    "report": {"files"},
    "limits": set(),
    "layer_heads": set(),
    "config": {"limits"},
    "families": {"config"},
    "layers": {"config"},
    "model": {"config", "layers"},
    "methods": {"config", "layers", "model"},
    # several processes that train one model, a part of it on each device
    "parallel": {"files", "lightning", "model"},
    # each of several processes reads its part of a base
    "checkpoints": {"config", "families", "files", "layers", "lightning", "methods", "model", "parallel", "prompts"}
    | {"resources"},
    "convert": {"checkpoints", "config", "families", "files", "layers", "limits", "methods", "model", "prompts"}
    | {"tokenizer"},
    "hub": {"convert", "families", "files"},  # whether the converter takes what is about to be downloaded
    "data": {"checkpoints", "files", "foreign", "layers", "prompts", "tokenizer"},
    "merge": {
        "checkpoints",
        "config",
        "convert",
        "data",
        "files",
        "layers",
        "lightning",
        "methods",
        "model",
        "parallel",
        "prompts",
        "tokenizer",
    },
    # runs that share a base model are loaded and applied by what answers with them
    "generation": {"checkpoints", "config", "data", "layers", "lightning", "methods", "model", "prompts", "resources"}
    | {"tokenizer"},
    "grading": set(),
    "chat": {"checkpoints", "cli", "generation", "lightning", "merge", "model", "prompts", "tokenizer"},
    # a comparison loads the base and its runs one after the other, and writes a page
    "evaluation": {"checkpoints", "data", "files", "generation", "layers", "lightning", "model", "parallel", "prompts"}
    | {"report", "tokenizer"},
    # one port for the servers of several devices
    "serve": {"checkpoints", "fabric", "generation", "lightning", "merge", "parallel", "prompts", "tokenizer"},
    "training": {"checkpoints", "config", "data", "files", "layers", "merge", "methods", "model", "report"}
    | {"lightning", "parallel", "resources", "tokenizer"},
    # answers of a model with a checker's verdicts, as rows and pairs, or learned from as they come
    "rollouts": {"checkpoints", "data", "files", "generation", "grading", "lightning", "methods", "model", "prompts"}
    | {"merge", "parallel", "report", "tokenizer", "training"},
    "planning": {"checkpoints", "config", "convert", "data", "families", "files", "layers", "methods", "model"}
    | {"fabric", "lightning", "resources", "tokenizer", "training"},
    # a run as others are to have it: its own record, merged weights, and the server in the place of theirs
    "submission": {"checkpoints", "config", "data", "files", "hub", "merge", "methods", "model", "planning", "report"}
    | {"training"},
    # a finetune script's run from beginning to end
    "finetuning": {
        "data",
        "evaluation",
        "files",
        "layers",
        "lightning",
        "parallel",
        "planning",
        "rollouts",
        "training",
    },
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


def module_name(path):
    """The name that a file of the library is imported by."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_files(path, files):
    """Names of the library's files, keys of `files`, that a file imports."""
    for module, names in imports(path):
        found = {f"{module}.{name}" for name in names} & files.keys()
        yield from found or {module} & files.keys()


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
        assert other in MAY_IMPORT[part] | ANY | {part}, f"{path} imports lit_gpt.{other}"
    assert not MAY_IMPORT[part] - found.keys(), f"nothing in lit_gpt/{part} imports these: take them out of the table"


def test_no_part_imports_one_that_stands_below_it():
    parts = list(MAY_IMPORT)
    for i, part in enumerate(parts):
        assert MAY_IMPORT[part] <= set(parts[:i]), f"{part}: a circle, or a row that stands too high in the table"


def test_no_files_import_each_other_in_a_circle():
    """Nor do they at the top of a function or for annotations: a reader follows those imports, too."""
    files = {module_name(path): path for path in (ROOT / "lit_gpt").rglob("*.py")}
    left = {name: {other for other in imported_files(path, files) if other != name} for name, path in files.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these import each other, or what does: {sorted(left)}"


def test_no_test_imports_another():
    """What several tests need is in a module of its own, named for what it holds."""
    for path in (ROOT / "tests").glob("*.py"):
        for module, names in imports(path):
            found = [name for name in (module, *names) if name and name.split(".")[-1].startswith("test_")]
            assert not found, f"{path.name} imports {found}: move what it needs into a module that holds no tests"


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
