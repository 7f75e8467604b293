"""The pages are true: links lead somewhere, tables are the library's, and what can be pasted runs when it is pasted."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hub_server import Hub
from script_processes import run

MADE = ("checkpoints", "data", "out", "submission")
"""Folders that the scripts write to."""
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in MADE for part in path.relative_to(ROOT).parts)
)
PAGES += [ROOT / "checkpoints" / "README.md", ROOT / "data" / "README.md"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    """The fenced blocks of a page in a language."""
    return [code for kind, code in FENCED.findall(text_of(page)) if kind == language]


def anchors(page):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page):
    """The links of a page to files of this repository that are not there, or to headings that the file lacks."""
    for link in LINK.findall(FENCED.sub("", text_of(page))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page):
    assert not list(broken_links(page))


def test_a_broken_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title, `coded`\n[a](page.md#a-title-coded) [b](#a-title-coded) [c](gone.md) [d](#gone)\n")
    assert list(broken_links(page)) == ["gone.md", "#gone"]


def test_every_page_is_reached_from_the_readme():
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop().resolve()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        todo += [page.parent / link.partition("#")[0] for link in LINK.findall(text_of(page))
                 if "://" not in link and not link.startswith("#")]  # fmt: skip
    assert {page.resolve() for page in (ROOT / "docs").glob("*.md")} <= reached


NAMED = re.compile(r"`((?:lit_gpt|scripts|finetune|generate|eval|tests|benchmarks|demo|docs|findings)/[\w/.*-]*)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    """But for those that it says how to make: these follow a `touch` of theirs, or are the heading of a new file."""
    made = set(re.findall(r"^New: `(.+?)`", text_of(page), re.MULTILINE)) if page.name == "CONTRIBUTING.md" else set()
    gone = [name for name in NAMED.findall(text_of(page)) if name not in made and not list(ROOT.glob(name))]
    assert not gone


MODULE = re.compile(r"\blit_gpt(?:\.[a-z_0-9]+)+")


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_that_a_page_names_exist(page):
    for name in MODULE.findall(text_of(page)):
        path = ROOT.joinpath(*name.split("."))
        assert any(p.exists() for p in (path, path.with_suffix(".py"), path.parent, path.parent.with_suffix(".py"))), (
            name
        )


def test_new_names_of_the_changelog_exist():
    """Its table of moved modules: the second column is what to import now."""
    rows = re.findall(r"^\| `lit_gpt[^|]*\| (.+) \|$", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert len(rows) > 20
    for name in re.findall(r"`(lit_gpt[\w.]+)`", " ".join(rows)):
        parts = name.split(".")
        while not (module := ROOT.joinpath(*parts)).is_dir() and not module.with_suffix(".py").is_file():
            parts.pop()
        attribute = name.split(".")[len(parts) :]
        source = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
        assert len(parts) > 1 and len(attribute) < 2, name
        assert not attribute or re.search(rf"\b{attribute[0]}\b", text_of(source)), name


ORDERS = [
    {
        "instruction": "Write the order as JSON.",
        "input": f"{n} {color} hats",
        "output": json.dumps({"n": n, "of": color}),
    }
    for color in ("red", "blue")
    for n in range(1, 11)
]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder that looks to whoever types commands like a fresh clone, with a file of rows."""
    clone = tmp_path_factory.mktemp("clone")
    for name in ("scripts", "finetune", "generate", "eval"):
        (clone / name).symlink_to(ROOT / name)
    (clone / "my.json").write_text(json.dumps(ORDERS))
    return clone


def typed(command, clone, hub):
    """A command as a shell in the clone gets it, where the Hugging Face hub is `hub`."""
    python = Path(sys.executable).parent
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    env |= {"PATH": f"{python}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HF_HOME": str(clone / "hf")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    shell = ["bash", "-ec", command]
    return subprocess.run(shell, cwd=clone, env=env, capture_output=True, text=True, timeout=300)


def test_your_own_data_in_five_commands_as_the_readme_types_them(clone, downloaded):
    section = text_of(ROOT / "README.md").partition("## Your own data")[2].partition("\n## ")[0]
    ((_, rows),) = [block for block in FENCED.findall(section) if block[0] == "json"]
    assert [row.keys() for row in json.loads(rows)] == [ORDERS[0].keys()] * 2
    ((_, shell),) = [block for block in FENCED.findall(section) if block[0] == "bash"]
    commands = [line for line in shell.replace("\\\n", "").splitlines() if line.strip()]
    assert len(commands) == 5
    repo = re.search(r"--repo_id (\S+)", commands[0])[1]
    files = {f.name: f.read_bytes() for f in downloaded["llama-gqa"].iterdir() if not f.name.startswith("lit_")}
    with Hub() as hub:
        hub.add(repo, files)
        for command in commands:
            done = typed(command, clone, hub)
            assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    run = json.loads((clone / "out" / "lora" / Path(repo).name / "finetuned.json").read_text())
    assert run["method"] == "lora" and run["data"]["samples"]["train"] == 18
    assert "tokens/sec" in done.stderr


@pytest.fixture(scope="module")
def prepared(clone, downloaded):
    """The clone with a converted checkpoint and a prepared data set, under the names of the page on Python."""
    folder = clone / "checkpoints" / "org" / "name"
    shutil.copytree(downloaded["llama-gqa"], folder, ignore=shutil.ignore_patterns("lit_*"))
    base = ("--checkpoint_dir", "checkpoints/org/name")
    for argv in (
        ("scripts/convert_hf_checkpoint.py", *base),
        ("scripts/prepare_json.py", *base, "--json_path", "my.json", "--destination_path", "data/python"),
    ):
        done = run(*argv, cwd=clone)
        assert done.returncode == 0, done.stderr
    return clone


def has_learned(model):
    """Whether LoRA's second matrices, which begin as zeros, are other than that in every layer."""
    return all(any(b.any() for b in block.attn.qkv.lora_B) for block in model.transformer.h)


def test_the_page_on_python_runs_as_it_is_pasted(prepared, monkeypatch):
    """In one go, since its second block goes on from the first; and both learn."""
    first, second = blocks(ROOT / "docs" / "python.md", "python")
    assert len([line for line in first.splitlines() if line.strip()]) <= 25
    monkeypatch.chdir(prepared)
    scope: dict = {}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(first.replace("data/my", "data/python"), scope)
    assert "Number of trainable parameters: 1,792" in said.getvalue()
    assert scope["run"].method == "lora" and (prepared / "out/lora/my/lit_model_lora_finetuned.pth").is_file()
    assert has_learned(scope["model"])
    exec(second, scope)
    assert has_learned(scope["model"]) and len(scope["batches"]) >= 1
    assert not scope["model"].transformer.h[0].attn.proj.weight.requires_grad


def test_the_readme_stays_short():
    """239 lines and 3,134 words were too much to read before the first command."""
    text = text_of(ROOT / "README.md")
    assert len(text.splitlines()) <= 120 and len(text.split()) <= 1570
