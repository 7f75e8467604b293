"""What the tree promises a reader: names say who uses them, long calls name arguments, docstrings are sentences."""

import ast
import re

import pytest
from conftest import ROOT

FOLDERS = ("lit_gpt", "scripts", "finetune", "generate", "eval", "demo", "benchmarks", "tests")
TREES = {p: ast.parse(p.read_text(encoding="utf-8")) for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")}
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in TREES}
LIBRARY = {name: path for name, path in FILES.items() if name.split(".")[0] == "lit_gpt"}
FOR_FORKS = {  # what somebody imports who builds on the library, whether or not we do
    "lit_gpt.layers.mlp.PlainMLP",
    "lit_gpt.layers.norms.LayerNorm",
    "lit_gpt.layers.norms.RMSNorm",
    "lit_gpt.layers.quantize.kinds.Kind",
    "lit_gpt.methods.Method",
    "lit_gpt.model.Block",
}
COMPILED = ("compiled_on_gpu", "partial(compiled_on_gpu", "triton")
"""Decorators whose functions take what they get by position."""
FRAGMENT = re.compile(r"(Of|That|Which|Those|Them|It|As|With|From|To|By|Nor|But|And|See|If|So)\b")
"""How a docstring begins that hangs on the name above it."""


def defined(tree):
    """Names that a module has at its top, with the nodes that make them."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {x.id: node for target in targets for x in ast.walk(target) if isinstance(x, ast.Name)}
    return found


def used_of_others(name, tree):
    """Dotted names of the library that a file, itself `name`, takes from other files."""
    modules = {}  # local name -> module
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for a in node.names:
                if node.module == name and f"{name}.{a.name}" not in LIBRARY:
                    continue  # its own, and not a file in its folder
                yield f"{node.module}.{a.name}"
                if f"{node.module}.{a.name}" in LIBRARY:
                    modules[a.asname or a.name] = f"{node.module}.{a.name}"
        elif isinstance(node, ast.Import):
            modules |= {a.asname or a.name: a.name for a in node.names if a.name in LIBRARY}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in modules:
            yield f"{modules[ast.unparse(node.value)]}.{node.attr}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in LIBRARY:
            yield f"{ast.unparse(node.value)}.{node.attr}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr") and len(node.args) > 1:
            module = modules.get(ast.unparse(node.args[0]))
            if module and isinstance(node.args[1], ast.Constant):
                yield f"{module}.{node.args[1].value}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.startswith("lit_gpt."):  # a test puts something in its place
                yield node.value
            for module, names in re.findall(r"from (lit_gpt[\w.]*) import ([\w, ]+)", node.value):  # a program to run
                yield from (f"{module}.{each.strip()}" for each in names.split(","))


def test_a_name_that_only_its_own_file_uses_begins_with_an_underscore():
    used = FOR_FORKS | {x for name, path in FILES.items() for x in used_of_others(name, TREES[path])}
    for name, path in LIBRARY.items():
        if name.startswith("lit_gpt.families."):
            used.add(f"{name}.FAMILY")  # is asked of every module of the folder
        for each in defined(TREES[path]):
            assert each.startswith("_") or f"{name}.{each}" in used, f"{path}: nobody else uses {each}: _{each}"


def test_what_forks_import_is_there():
    for name in FOR_FORKS:
        module, _, leaf = name.rpartition(".")
        assert leaf in defined(TREES[LIBRARY[module]]), name


def function_called(call, name, tree, seen=()):
    """The definition in the library that a call by a plain name means; None if it is none of ours."""
    if not isinstance(call, str) or (name, call) in seen:
        return None
    if node := defined(tree).get(call):
        return node if isinstance(node, ast.FunctionDef | ast.ClassDef) else None
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in FILES:
            for a in node.names:
                if (a.asname or a.name) == call:
                    return function_called(a.name, node.module, TREES[FILES[node.module]], (*seen, (name, call)))
    return None


def takes_positions(node):
    """Whether a function has to be given more than four arguments by position: autograd's, compiled ones, *args."""
    if isinstance(node, ast.ClassDef):
        return any(ast.unparse(base).endswith("Function") for base in node.bases)
    return node.args.vararg or any(ast.unparse(d).startswith(COMPILED) for d in node.decorator_list)


def long_calls(name, tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 4:
            function = function_called(node.func.id, name, tree)
            starred = any(isinstance(x, ast.Starred) for x in node.args)
            if function is not None and not starred and not takes_positions(function):
                yield node


def test_calls_with_more_than_four_arguments_name_them():
    for name, path in FILES.items():
        if name.split(".")[0] != "tests":
            for call in long_calls(name, TREES[path]):
                raise AssertionError(
                    f"{path}:{call.lineno}: {call.func.id} gets {len(call.args)} arguments by position"
                )


def docstrings(tree):
    """(line, text) of every docstring of a file, those under fields and constants included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            if text := ast.get_docstring(node):
                yield getattr(node, "lineno", 1), text
            for before, after in zip(node.body, node.body[1:], strict=False):
                is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if isinstance(before, ast.Assign | ast.AnnAssign) and is_text and isinstance(after.value.value, str):
                    yield after.lineno, after.value.value


@pytest.mark.parametrize("folder", sorted({path.relative_to(ROOT / "lit_gpt").parts[0] for path in LIBRARY.values()}))
def test_a_docstring_is_understood_without_the_name_above_it(folder):
    for path in LIBRARY.values():
        if path.relative_to(ROOT / "lit_gpt").parts[0] == folder:
            for line, text in docstrings(TREES[path]):
                assert not FRAGMENT.match(text.strip()), f"{path}:{line}: {text.strip().splitlines()[0]}"


def test_these_rules_see_what_breaks_them():
    tree = ast.parse('def f(a, b, c, d, e): ...\nf(1, 2, 3, 4, 5)\nf(1, 2, 3, 4, e=5)\nX = 1\n"""Of f."""\n')
    assert [call.lineno for call in long_calls("x", tree)] == [2]
    assert list(defined(tree)) == ["f", "X"]
    assert [FRAGMENT.match(text) is not None for _, text in docstrings(tree)] == [True]
