"""CONTRIBUTING.md is true: its table has every test, and its walks build what they say in a copy of the repository."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import pytest
from conftest import ROOT, tiny_hf, write_tokenizer
from script_processes import FIRST_ENVIRONMENT, Forked, can_fork, start_forker

PAGE = ROOT / "CONTRIBUTING.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:^New: `([^`\n]+)`\n)?^```(python|diff|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PARTS = ("lit_gpt", "scripts", "finetune", "generate", "eval", "demo", "benchmarks", "tests", "pyproject.toml")
"""What of the repository the walks need."""
TRAINING = ("--batch_size", 4, "--epochs", 2, "--learning_rate", 0.01, "--eval_interval", 100)


def table():
    """(touched, tests) of each row of the page's table, as the texts in backticks."""
    section = TEXT.partition("## Which tests to run")[2].partition("\n### ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    return [[re.findall(r"`([^`]+)`", cell) for cell in row] for row in rows]


def test_every_test_is_in_the_table_and_every_name_of_it_exists():
    listed = set()
    for touched, tests in table():
        for name in touched:
            assert (ROOT / "lit_gpt" / name).exists() or (ROOT / name).exists(), name
        for pattern in tests:
            found = {path.name for path in (ROOT / "tests").glob(pattern)}
            assert found, pattern
            listed |= found
    assert {path.name for path in (ROOT / "tests").glob("test_*.py")} - listed == set()


def test_every_part_of_the_library_is_in_the_table():
    touched = {name.split("/")[0] for names, _ in table() for name in names}
    parts = {p.name for p in (ROOT / "lit_gpt").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert parts - touched == set()


def edited(text, diff):
    """`text` with the lines of each hunk of `diff` in it, whose old lines are there exactly once."""
    for hunk in diff.split("\n@@\n"):
        lines = hunk.rstrip("\n").split("\n")
        assert all(line[:1] in ("+", "-", " ") for line in lines), hunk
        old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] != sign) for sign in "+-")
        places = [found.start() for found in re.finditer(f"^{re.escape(old)}", text, re.MULTILINE)]
        assert old and len(places) == 1, f"not there, or several times:\n{old}"
        text = text[: places[0]] + new + text[places[0] + len(old) :]
    return text


def test_what_does_not_fit_its_file_is_seen():
    assert edited("a\nb\n", " a\n+c\n") == "a\nc\nb\n" and edited("a\nb\nc\n", "-a\n+d\n@@\n c\n+e\n") == "d\nb\nc\ne\n"
    for text in ("b\n", "a\na\n", "aa\n"):
        with pytest.raises(AssertionError, match="not there, or several times"):
            edited(text, " a\n+c\n")


def apply(page, tree):
    """Make of a copy of the repository what the blocks of a page say."""
    for new, language, code in BLOCK.findall(page):
        if new:
            assert language == "python" and not (tree / new).exists()
            (tree / new).write_text(code, encoding="utf-8")
        elif language == "diff":
            head, _, diff = code.partition("\n")
            path = tree / head.removeprefix("--- ")
            path.write_text(edited(path.read_text(encoding="utf-8"), diff), encoding="utf-8")
        elif language == "bash":
            subprocess.run(["bash", "-euc", code], cwd=tree, check=True)


class Tree:
    """A copy of the repository, and a folder beside it to work in."""

    def __init__(self, folder):
        self.root, self.place = folder / "tree", folder / "work"
        self.place.mkdir()
        self.root.mkdir()
        self.environment = {**FIRST_ENVIRONMENT, "PYTHONPATH": str(self.root)}
        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, self.root / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / part, self.root / part)

    @cached_property
    def forker(self):
        """What forks for a script of the copy, a process that has imported torch and nothing of the project."""
        return start_forker(self.root, self.environment)

    def run(self, script, *argv):
        """A script of the copy, which runs the library of the copy."""
        if not can_fork():
            return self.python(self.root / script, *argv, cwd=self.place)
        command = [str(self.root / script), *map(str, argv)]
        process = Forked(self.forker, command, self.place, subprocess.PIPE, self.environment)
        said = process.communicate(timeout=600)
        return self.checked(subprocess.CompletedProcess(command, process.returncode, *said))

    def python(self, *argv, cwd):
        command = [sys.executable, *map(str, argv)]
        done = subprocess.run(command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=600)
        return self.checked(done)

    def checked(self, done):
        if done.returncode != 0:
            pytest.fail(f"{shlex.join(done.args)}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}", pytrace=False)
        return done


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy with all of the page's walks walked, a tiny checkpoint, and data in the new prompt style."""
    tree = Tree(tmp_path_factory.mktemp("contributing"))
    apply(TEXT, tree.root)
    base = tree.place / "base"
    tiny_hf("llama-gqa").save_pretrained(base)
    write_tokenizer(base)
    rows = [
        {"instruction": f"say {w} {n} times", "output": " ".join([w] * n)} for w in ("ab", "cd") for n in range(1, 9)
    ]
    (tree.place / "rows.json").write_text(json.dumps(rows))
    tree.run("scripts/convert_hf_checkpoint.py", "--checkpoint_dir", "base")
    tree.run("scripts/prepare_json.py", "--checkpoint_dir", "base", "--json_path", "rows.json",
             "--destination_path", "data", "--prompt_style", "acme")  # fmt: skip
    return tree


def finetuned(tree, method, *flags):
    """What a run of this method in the copy says of itself, after it was asked something."""
    given = ("--checkpoint_dir", "base", "--data_dir", "data", "--out_dir", method, *TRAINING, *flags)
    tree.run(f"finetune/{method}.py", *given)
    asked = ("--checkpoint_dir", "base", "--finetuned_path", method, "--prompt", "say ab 2 times", "--temperature", 0)
    answer = tree.run(f"generate/{method}.py", *asked, "--max_new_tokens", 4)
    assert "tokens/sec" in answer.stderr
    return json.loads((tree.place / method / "finetuned.json").read_text())


def test_a_method_and_a_flag_that_are_added_as_it_says_train_and_are_planned(tree):
    run = finetuned(tree, "norms", "--lr_floor", 0.5, "--norms_final", "false")
    assert run["method"] == "norms" and run["method_args"] == {"norms_final": False}
    assert run["training"]["lr_floor"] == 0.5 and run["prompt_style"] == "acme"
    names = "import sys, torch; print(*torch.load(sys.argv[1], weights_only=True))"
    weights = tree.place / "norms" / "lit_model_norms_finetuned.pth"
    trained = tree.python("-c", names, weights, cwd=tree.place).stdout.split()
    assert len(trained) == 4 and all("norm_" in name for name in trained)
    plan = tree.run("scripts/plan.py", "--method", "norms", "--checkpoint_dir", "base", "--data_dir", "data",
                    "--epochs", 1, "--probe", "false")  # fmt: skip
    assert "steps" in plan.stdout
    helped = tree.run("finetune/norms.py", "--help").stdout
    assert "--lr_floor" in helped and "--norms_final" in helped and "adapter" not in helped.lower()


def test_a_variant_and_a_quantization_that_are_added_as_it_says_train(tree):
    run = finetuned(tree, "lora", "--lora_init", "gaussian", "--quantize", "int8-weight")
    assert run["method_args"]["lora_init"] == "gaussian" and run["quantize"] == "int8-weight"


def test_the_projects_own_tests_take_in_what_was_added(tree):
    """Methods, quantized layers, their bytes in a plan, and the rules of the house: names, arrows."""
    tests = [f"tests/test_{name}.py" for name in ("methods", "quantize", "plan", "architecture", "house_rules")]
    chosen = "fp32-norms or fp32-gaussian or int8-weight or arrow or circle or underscore or arguments"
    argv = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", chosen)
    done = tree.python(*argv, cwd=tree.root)
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50, done.stdout


def test_a_family_that_is_added_as_its_page_says_is_converted_trained_and_written_back(tree):
    from safetensors.torch import save_file

    page = (ROOT / "docs" / "add_a_family.md").read_text(encoding="utf-8")
    code, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tree.root / "lit_gpt" / "families" / "acme.py").write_text(code, encoding="utf-8")
    base = tree.place / "acme"
    model = tiny_hf("qwen3", tie_word_embeddings=False, attention_bias=True, head_dim=8)
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("o_proj.bias")}
    base.mkdir()
    save_file(state, base / "model.safetensors")
    hf = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    hf |= {"vocab_size": 320, "intermediate_size": 48, "max_position_embeddings": 512, "rms_norm_eps": 1e-6}
    (base / "config.json").write_text(json.dumps(hf | {"architectures": ["AcmeForCausalLM"], "hidden_act": "silu"}))
    write_tokenizer(base)
    tree.run("scripts/convert_hf_checkpoint.py", "--checkpoint_dir", "acme")
    assert "acme/acme-1b" in tree.run("scripts/download.py").stdout.split()
    tree.run("finetune/lora.py", "--checkpoint_dir", "acme", "--data_dir", "data", "--out_dir", "of_acme", *TRAINING)
    tree.run("scripts/convert_lit_checkpoint.py", "--checkpoint_dir", "acme", "--output_dir", "back", "--format", "hf")
    assert json.loads((Path(tree.place) / "back" / "config.json").read_text())["architectures"] == ["AcmeForCausalLM"]
