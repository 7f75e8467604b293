"""How easy a checkout is to take over, in figures: names that hide, files between a reader and the loop, circles.

python benchmarks/house.py [CHECKOUT ...]

For each checkout, this one if none is named: top-level names of lit_gpt that only their own file uses and that have no
underscore; files that training/loop.py reaches by imports, and their lines; entries of lit_gpt/; circles of imports
among files and among the entries; the length of README.md.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

USERS = ("lit_gpt", "scripts", "finetune", "generate", "eval", "demo", "benchmarks", "tests")


def main() -> None:
    for root in map(Path, sys.argv[1:] or [Path(__file__).parent.parent]):
        print(root.resolve().name)
        for line in figures(root):
            print(f"  {line}")


def figures(root: Path) -> Iterator[str]:
    """Yields the figures of a checkout, a line each."""
    trees = {
        p: ast.parse(p.read_text(encoding="utf-8")) for folder in USERS for p in sorted((root / folder).rglob("*.py"))
    }
    modules = {module_name(root, p): p for p in trees if p.relative_to(root).parts[0] == "lit_gpt"}
    names = {(name, each) for name, path in modules.items() for each in defined(trees[path])}
    used = {x for path, tree in trees.items() for x in used_of_others(module_name(root, path), tree, modules)}
    hidden = {(module, each) for module, each in names - used if not each.startswith("_") and each != "FAMILY"}
    yield f"{len(hidden)} of {len(names)} top-level names are used in their own file only and have no underscore"

    imports = {name: imported(trees[path], modules) - {name} for name, path in modules.items()}
    reached = closure("lit_gpt.training.loop", imports)
    n_lines = sum(len(modules[name].read_text(encoding="utf-8").splitlines()) for name in reached)
    yield f"{len(reached)} files with {n_lines:,} lines are reached from training/loop.py"

    entries = {p.name for p in (root / "lit_gpt").iterdir() if p.name not in ("__init__.py", "__pycache__")}
    yield f"{len(entries)} entries in lit_gpt/, {len(modules)} files"

    parts: dict[str, set[str]] = {}
    for name, others in imports.items():
        parts.setdefault(part_of(name), set()).update(part_of(x) for x in others)
    for what, graph in (("files", imports), ("entries", {p: others - {p} for p, others in parts.items()})):
        circles = in_circles(graph)
        named = f": {', '.join(sorted(circles))}" if circles else ""
        yield f"{len(circles)} {what} import each other in a circle{named}"

    readme = (root / "README.md").read_text(encoding="utf-8")
    yield f"README.md has {len(readme.splitlines())} lines, {len(readme.split()):,} words"


def module_name(root: Path, path: Path) -> str:
    """Returns the name that a file is imported by."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def part_of(name: str) -> str:
    """Returns the entry of lit_gpt/ that a module is in."""
    return name.split(".")[1] if "." in name else name


def defined(tree: ast.Module) -> set[str]:
    """Returns the names that a file defines at its top."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {x.id for target in targets for x in ast.walk(target) if isinstance(x, ast.Name)}
    return found


def used_of_others(name: str, tree: ast.Module, modules: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """Yields (module, name) of what a file takes from other files of the library, in strings of programs, too."""
    local: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module != name:
            for a in node.names:
                yield node.module, a.name
                if f"{node.module}.{a.name}" in modules:
                    local[a.asname or a.name] = f"{node.module}.{a.name}"
        elif isinstance(node, ast.Import):
            local |= {a.asname or a.name: a.name for a in node.names if a.name in modules}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield local.get(ast.unparse(node.value), ""), node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr") and len(node.args) > 1:
            if isinstance(node.args[1], ast.Constant):
                yield local.get(ast.unparse(node.args[0]), ""), str(node.args[1].value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            module, _, leaf = node.value.rpartition(".")
            yield module, leaf
            for module, names in re.findall(r"from (lit_gpt[\w.]*) import ([\w, ]+)", node.value):
                yield from ((module, each.strip()) for each in names.split(","))


def imported(tree: ast.Module, modules: Mapping[str, Path]) -> set[str]:
    """Returns the files of the library that a file imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            files = {f"{node.module}.{a.name}" for a in node.names} & modules.keys()
            found |= files or ({node.module} & modules.keys())
    return found


def closure(start: str, imports: Mapping[str, set[str]]) -> set[str]:
    """Returns all files that one reaches by imports, itself and the packages that they are in included."""
    seen, left = set(), [start]
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            parents = (name.rsplit(".", n)[0] for n in range(1, name.count(".")))
            left += [*imports[name], *(x for x in parents if x in imports)]
    return seen


def in_circles(graph: Mapping[str, set[str]]) -> set[str]:
    """Returns what can be reached from itself."""
    left = {name: others & graph.keys() for name, others in graph.items()}
    for _ in range(2):  # take away what imports nothing that is left, then what nothing that is left imports
        while free := [name for name, others in left.items() if not others & left.keys()]:
            for name in free:
                del left[name]
        left = {name: {x for x, others in left.items() if name in others} for name in left}
    return set(left)


if __name__ == "__main__":
    main()
