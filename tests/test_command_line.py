"""What is typed wrongly is said in one sentence of ours, at once; what is typed as usual is understood."""

import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import MISSING
from pathlib import Path
from types import UnionType
from typing import Literal, Union, get_args, get_origin

import pytest
from conftest import ROOT, assert_one_line_error
from script_processes import start

from lit_gpt.cli import parse
from lit_gpt.cli.flags import flags_of
from lit_gpt.cli.help import config_text, help_of
from lit_gpt.errors import CommandLineError, UserError

SCRIPTS = sorted(
    str(p.relative_to(ROOT))
    for folder in ("scripts", "finetune", "generate", "eval")
    for p in (ROOT / folder).glob("*.py")
    if p.name != "plan.py"  # it has the flags of the script that it starts
)
THEIRS = ("Parser", "Problem", "Union", "Traceback", "typing", "class", "NoneType", "Optional", "Expected", "usage:")
THEIRS += ("Literal", "argument", "Namespace", "Error")
"""Words of parsers and of Python, which no user's sentence has."""


def main_of(script):
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the docstring is looked for
    spec.loader.exec_module(module)
    return module.main


def refusal(main, *argv):
    with pytest.raises(CommandLineError) as caught:
        parse(main, [*map(str, argv)])
    said = str(caught.value)
    assert "\n" not in said and not [word for word in THEIRS if word in said], said
    return said


def kinds(kind):
    """The types of a union but None; the one of anything else."""
    if get_origin(kind) in (Union, UnionType):
        return [k for part in get_args(kind) for k in kinds(part) if k is not type(None)]
    return [kind]


def wrong_text(kind):
    """Text that no value of this annotation is written as; None if any text is one."""
    every = kinds(kind)
    if str in every:
        return None
    if any(get_origin(k) is dict for k in every):
        return "{a: b"
    if any(get_origin(k) is tuple for k in every):
        item = next(get_args(k)[0] for k in every if get_origin(k) is tuple)
        return "[a, b" if item in (str, Path) else "zzz"
    return "" if Path in every else "z{z"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_value_of_any_flag_of_any_script_is_named_in_our_words(script, tmp_path):
    main = main_of(script)
    for name, flag in flags_of(main).items():
        text = wrong_text(flag.kind)
        if text is not None:
            said = refusal(main, f"--{name}={text}")
            assert said.startswith(f"--{name} must be ") and f"found {text!r}" in said, said
        file = tmp_path / "wrong.yaml"
        wrong = "{x: {y: z}}" if any(get_origin(k) is not dict for k in kinds(flag.kind)) else "[x]"
        file.write_text(f"# a comment\n{name}: {wrong}\n")
        said = refusal(main, "--config", file)
        assert said.startswith(f"{file}, line 2: {name} must be "), said
        assert refusal(main, f"--{name}").startswith(f"--{name} has no value; it must be ")
        misspelt = name[:-1] + "q"
        assert f"unknown flag --{misspelt}" in (said := refusal(main, f"--{misspelt}", "1"))
        assert len(name) < 5 or f"--{name}" in said, said


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_has_to_be_given_is_named_with_its_meaning(script):
    main = main_of(script)
    required = [name for name, flag in flags_of(main).items() if flag.default is MISSING]
    if required:
        said = refusal(main)
        assert all(f"--{name} (" in said for name in required) and "see --help" not in said, said


@pytest.mark.parametrize("script", SCRIPTS)
def test_printed_values_are_read_back_as_they_were_and_help_names_every_flag(script, tmp_path):
    main = main_of(script)
    flags = flags_of(main)
    given = {name: Path("x") if flag.kind is Path else "lit" for name, flag in flags.items() if flag.default is MISSING}
    (tmp_path / "all.yaml").write_text(config_text(flags, given))
    typed = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    try:
        wanted = parse(main, typed)
    except UserError as e:  # what has no default in its own class
        wanted = str(e)
    try:
        assert parse(main, ["--config", str(tmp_path / "all.yaml")]) == wanted
    except UserError as e:
        assert str(e) == wanted
    assert config_text(flags, given, "skip_default").count("\n") == len(given)
    text = help_of(main)
    assert all(f"--{name} " in text for name in flags) and "LIT_GPT_TRACEBACK" in text
    assert ("--lr is --learning_rate" in " ".join(text.split())) is ("learning_rate" in flags)


LORA = "finetune/lora.py"


@pytest.mark.parametrize(
    "typed, parts",
    [
        (["--learning_rate", "abc"], ["--learning_rate must be a number, found 'abc'"]),
        (["--learning_rate", "nan"], ["must be a number"]),
        (["--lr", "abc"], ["--lr (--learning_rate) must be a number, found 'abc'"]),
        (["--batch_size", "2.5"], ["--batch_size must be a whole number, found '2.5'"]),
        (["--merge"], ["--merge has no value; it must be true or false"]),
        (["--merge", "--seed", "1"], ["--merge has no value"]),
        (["--quantize", "nf5"], ["must be one of bnb.nf4, ", "did you mean bnb.nf4?"]),
        (["--lora_rank", "4"], ["unknown flag --lora_rank; did you mean --lora_r"]),
        (["--rnak", "4"], ["did you mean --lora_r?"]),
        (["--mixed"], ["unknown flag --mixed; --help lists the flags"]),
        (["-lr", "1"], ["unknown flag -lr; did you mean --learning_rate?"]),
        (["--out_dir", "my", "run"], ["unexpected 'run' after --out_dir", "quotes"]),
        (["out"], ["unexpected 'out'; each value stands after its flag"]),
        (["--config", "no.yaml"], ["--config no.yaml: there is no such file"]),
        (["--print_config=all"], []),
    ],
)
def test_typical_mistakes(typed, parts):
    if typed == ["--print_config=all"]:
        with pytest.raises(CommandLineError, match="skip_default"):
            config_text(flags_of(main_of(LORA)), {}, "all")
        return
    said = refusal(main_of(LORA), *typed)
    assert all(part in said for part in parts), said


@pytest.mark.parametrize(
    "text, parts",
    [
        ("learning_rate: abc\n", ["line 1: learning_rate must be a number, found 'abc'"]),
        ("seed: 1\nlerning_rate: 1e-4\n", ["line 2: 'lerning_rate' is no flag", "did you mean learning_rate?"]),
        ("lora:\n  lora_r: 8\n", ["line 1: 'lora' is no flag", "write lora_r without it"]),
        ("seed: 1\nseed: 2\n", ["line 2: seed stands there twice"]),
        ("seed: [1\n", ["is not YAML", "line 2"]),
        ("a: b: c\n", ["line 1 is not YAML"]),
        ("- seed\n", ["has no flags with values"]),
        ("just text\n", ["has no flags with values"]),
        ("seed: 1.5\n", ["seed must be a whole number, found '1.5'"]),
        ("merge: 1\n", ["merge must be true or false, found '1'"]),
        ("config: other.yaml\n", ["'config' is no flag"]),
    ],
)
def test_mistakes_in_a_config_file_are_named_with_their_line(text, parts, tmp_path):
    (tmp_path / "my.yaml").write_text(text)
    said = refusal(main_of(LORA), "--config", tmp_path / "my.yaml")
    assert all(part in said for part in ("my.yaml", *parts)), said


def test_a_config_file_that_is_none_is_named(tmp_path):
    (tmp_path / "small.yaml").write_text("seed: 1\n")
    (tmp_path / "latin.yaml").write_bytes(b"out_dir: \xe9\n")
    main = main_of(LORA)
    assert "did you mean" in (said := refusal(main, "--config", tmp_path / "smal.yaml")) and "small.yaml" in said
    assert "cannot be read" in refusal(main, "--config", tmp_path)
    assert "UTF-8" in refusal(main, "--config", tmp_path / "latin.yaml")


def test_usual_names_mean_ours_in_flags_and_in_files_and_what_comes_last_counts(tmp_path):
    main = main_of(LORA)
    (tmp_path / "my.yaml").write_text(
        "lr: 1e-5\nprecision: 16\nquantize: NF4\nmax-time: 24:00:00\nepochs: null\nmerge: yes\nout_dir:\n"
    )
    values = parse(main, ["--lr", "3", "--config", str(tmp_path / "my.yaml"), "--num_epochs", "2", "--rank=4"])
    assert values["train"].learning_rate == 1e-5 and values["train"].epochs == 2 and values["lora"].lora_r == 4
    assert values["precision"] == "16-true" and values["quantize"] == "bnb.nf4" and values["merge"] is True
    assert values["train"].max_seconds == 86400 and values["out_dir"] is None
    assert parse(main, ["--learning-rate", "5e-4"])["train"].learning_rate == 5e-4
    assert parse(main, ["--max_iters", "5e4"])["train"].max_iters == 50_000
    shown = config_text(flags_of(main), {"quantize": values["quantize"], "precision": "bf16-true"}, "skip_default")
    assert shown == "precision: bf16-true\nquantize: bnb.nf4\n"


@pytest.mark.parametrize(
    "flag, typed, meant",
    [
        ("quantize", "int8", "int8"),
        ("quantize", "fp4-dq", "bnb.fp4-dq"),
        ("quantize", "none", None),
        ("precision", "bf16", "bf16-true"),
        ("precision", "FP16", "16-true"),
        ("precision", "float32", "32-true"),
        ("precision", "bf16-mixed", "bf16-mixed"),
    ],
)
def test_a_value_by_its_usual_name(flag, typed, meant):
    assert parse(main_of(LORA), [f"--{flag}", typed])[flag] == meant


def test_dtypes_by_their_usual_names_and_none_where_it_is_a_value():
    convert = main_of("scripts/convert_hf_checkpoint.py")
    assert parse(convert, ["--checkpoint_dir", "x", "--dtype", "bf16"])["dtype"] == "bfloat16"
    assert parse(convert, ["--checkpoint_dir", "x", "--dtype", "16"])["dtype"] == "float16"
    export = main_of("scripts/convert_lit_checkpoint.py")
    assert parse(export, ["--checkpoint_dir", "x", "--output_dir", "y", "--gguf_type", "q8_0"])["gguf_type"] == "Q8_0"
    assert parse(main_of("generate/lora.py"), ["--quantize", "none"])["quantize"] == "none"


def lists():
    for script in SCRIPTS:
        for name, flag in flags_of(main_of(script)).items():
            for kind in kinds(flag.kind):
                if get_origin(kind) is tuple:
                    yield pytest.param(script, name, get_args(kind)[0], id=f"{script}-{name}")


@pytest.mark.parametrize("script, name, item", lists())
def test_a_list_needs_no_brackets(script, name, item, tmp_path):
    from lit_gpt.cli.words import read

    flags = flags_of(main_of(script))
    a, b = get_args(item)[:2] if get_origin(item) is Literal else ("arc_*", "b-c")
    read_as = Path if item is Path else str
    for typed in (f"{a},{b}", f"{a}, {b},", f"[{a}, {b}]", f'["{a}","{b}"]', f"- '{a}'\n- {b}"):
        if typed.startswith("[a") and "*" in a:
            typed = f"['{a}', {b}]"
        assert read([f"--{name}", typed], flags).values == {name: (read_as(a), read_as(b))}, typed
    assert read([f"--{name}", b], flags).values == {name: (read_as(b),)}
    for text in (f"{name}: {b},{a}\n", f"{name}: [{b}, '{a}']\n", f"{name}:\n- {b}\n- '{a}'\n"):
        (tmp_path / "c.yaml").write_text(text)
        assert read(["--config", str(tmp_path / "c.yaml")], flags).values == {name: (read_as(b), read_as(a))}, text


def test_lists_are_taken_by_as_many_flags_as_there_are():
    assert {p.values[1] for p in lists()} >= {"eval_tasks", "columns", "perturbations", "subsets"}


def test_texts_keep_what_they_are():
    generate = main_of("generate/base.py")
    for text in ("1e-5", "[a, b]", "{x}", "true", "a: b", "", "-1", "--- a", "ä\nb"):
        assert parse(generate, ["--prompt", text])["asking"].prompt == text
    assert parse(generate, ["--prompt=--merge"])["asking"].prompt == "--merge"
    assert parse(generate, ["--top_k", "null"])["sampling"].top_k is None


def test_names_with_values():
    mix = main_of("scripts/prepare_mix.py")
    argv = ["--sources", "{a: x.jsonl, b: data/b}", "--weights", "{a: 1, b: 2.5}"]
    values = parse(mix, argv)["mix"]
    assert values.sources == {"a": Path("x.jsonl"), "b": Path("data/b")} and values.weights == {"a": 1.0, "b": 2.5}
    assert "put a space after the colon in 'a:x.jsonl'" in refusal(mix, "--sources", "{a:x.jsonl}")
    assert "a 'x' must be a number" in refusal(mix, "--weights", "{a: x}")
    assert "the closing } is missing; put quotes" in refusal(mix, "--sources", "{a:", "x}")


def test_the_help_and_the_printed_values_come_without_torch_and_errors_within_a_second(tmp_path):
    began = time.monotonic()
    said, _ = start(LORA, "--help", cwd=tmp_path, anew=True).communicate()
    assert "--learning_rate" in said
    said, _ = start(LORA, "--lr", "1e-3", "--print_config=skip_default", cwd=tmp_path, anew=True).communicate()
    assert said == "learning_rate: 0.001\n"
    assert time.monotonic() - began < 20  # two starts with torch take longer on any machine under load


PATHS = [  # script, arguments, what its one line says
    (LORA, ["--data_dir", "data/x"], ["checkpoints/org/tiny", "--checkpoint_dir"]),
    (LORA, [], ["stabilityai/stablelm-base-alpha-3b (--checkpoint_dir, by default); here is checkpoints/org/tiny"]),
    (LORA, ["--checkpoint_dir", "checkpoints/org/tinny"], ["did you mean checkpoints/org/tiny?"]),
    (LORA, ["--checkpoint_dir", "checkpoints/orgg/tiny"], ["did you mean checkpoints/org/tiny?"]),
    (LORA, ["--checkpoint_dir", "tiny"], ["did you mean checkpoints/org/tiny?"]),
    (LORA, ["--checkpoint_dir", "checkpoints/tiny"], ["did you mean checkpoints/org/tiny?"]),
    (LORA, ["--checkpoint_dir", "checkpoints"], ["checkpoints/org/tiny"]),
    (LORA, ["--checkpoint_dir", "TINY/lit_model.pth"], ["is a file; pass the folder checkpoints/org/tiny"]),
    (
        LORA,
        ["--checkpoint_dir", "checkpoints/org/raw"],
        ["convert_hf_checkpoint.py --checkpoint_dir checkpoints/org/raw"],
    ),
    (LORA, ["TINY", "--data_dir", "data/suport"], ["no folder data/suport", "did you mean data/support?"]),
    (LORA, ["TINY", "--data_dir", "suport"], ["did you mean data/support?"]),
    (LORA, ["TINY", "--data_dir", "data"], ["data/support"]),
    (LORA, ["TINY", "--data_dir", "rows.jsonl"], ["is a file", "prepare_json.py --json_path rows.jsonl"]),
    (LORA, ["TINY", "--data_dir", "checkpoints/org/tiny"], ["is a checkpoint; pass it as --checkpoint_dir"]),
    (LORA, ["--checkpoint_dir", "data/support"], ["is a prepared data set; pass it as --data_dir"]),
    (LORA, ["TINY", "DATA", "--out_dir", "rows.jsonl"], ["--out_dir rows.jsonl is a file"]),
    (LORA, ["TINY", "DATA", "--best_task", "a", "--best_task_data", "row.jsonl"], ["did you mean rows.jsonl?"]),
    (
        LORA,
        ["--checkpoint_dir", "out/lora/x"],
        ["run of finetune/lora.py on checkpoints/org/tiny", "generate/lora.py --"],
    ),
    (
        LORA,
        ["--checkpoint_dir", "out/lora/x"],
        ["scripts/merge_lora.py --checkpoint_dir checkpoints/org/tiny --finetuned_"],
    ),
    ("finetune/full.py", ["--checkpoint_dir", "out/adapter/y"], ["generate/adapter.py --checkpoint_dir"]),
    ("finetune/preference.py", ["TINY", "--data_dir", "data/suport"], ["did you mean data/support?"]),
    ("finetune/preference.py", ["TINY", "DATA", "--sft_run", "out/lora/xx"], ["did you mean out/lora/x?"]),
    ("finetune/grpo.py", ["TINY", "--data_dir", "data/suport"], ["did you mean data/support?"]),
    ("scripts/sample_answers.py", ["TINY", "--json_path", "row.jsonl"], ["did you mean rows.jsonl?"]),
    (
        "scripts/sample_answers.py",
        ["TINY", "--json_path", "rows.jsonl", "--finetuned_path", "out/lora/xx"],
        ["did you mean out/lora/x?"],
    ),
    (
        "generate/base.py",
        ["--checkpoint_dir", "out/full/z"],
        ["generate/full.py --checkpoint_dir checkpoints/org/tiny"],
    ),
    (
        "generate/lora.py",
        ["--checkpoint_dir", "out/lora/x"],
        ["pass --checkpoint_dir checkpoints/org/tiny --finetuned_path"],
    ),
    ("generate/lora.py", ["TINY", "--finetuned_path", "out/lora/xx"], ["did you mean out/lora/x?"]),
    ("eval/compare.py", ["TINY", "--finetuned_path", "out/lora/x,out/lora/xx"], ["did you mean out/lora/x?"]),
    ("generate/lora.py", ["TINY", "--finetuned_path", "checkpoints/org/tiny"], ["is a checkpoint and no run"]),
    ("generate/lora.py", ["TINY", "--finetuned_path", "out"], ["runs are in it: --finetuned_path out/"]),
    ("generate/lora.py", ["TINY"], ["out/lora/tiny holds no finetuned model", "here are out/adapter/y"]),
    ("generate/adapter_v2.py", ["TINY"], ["out/adapter_v2/tiny holds no finetuned model"]),
    (
        "eval/lm_eval_harness.py",
        ["TINY", "--task_data", "{a: row.jsonl}"],
        ["no row.jsonl (--task_data); did you mean rows"],
    ),
    ("eval/lm_eval_harness.py", ["TINY", "--finetuned_path", "out/lora/q"], ["no out/lora/q"]),
    ("eval/lm_eval_harness.py", ["TINY", "--save_filepath", "out"], ["--save_filepath out is a folder"]),
    ("eval/helm.py", ["TINY", "--finetuned_path", "out/lora/xx"], ["did you mean out/lora/x?"]),
    ("eval/mini_helm.py", ["TINY", "--finetuned_path", "out/lora/xx"], ["did you mean out/lora/x?"]),
    ("scripts/prepare_submission.py", ["--finetuned_path", "out/lora/xx"], ["did you mean out/lora/x?"]),
    ("eval/validate.py", ["TINY", "--data_dir", "data/suport"], ["did you mean data/support?"]),
    (
        "scripts/prepare_csv.py",
        ["TINY", "--csv_path", "rows.csv"],
        ["no rows.csv (--csv_path); did you mean rows.jsonl?"],
    ),
    ("scripts/prepare_csv.py", ["TINY", "--csv_path", "data"], ["--csv_path data is a folder"]),
    ("scripts/prepare_json.py", ["TINY", "--json_path", "row.jsonl"], ["did you mean rows.jsonl?"]),
    ("scripts/prepare_alpaca.py", ["TINY", "--data_file", "row.jsonl"], ["did you mean rows.jsonl?"]),
    (
        "scripts/prepare_mix.py",
        ["--sources", "{a: data/suport}"],
        ["no data/suport (--sources); did you mean data/support?"],
    ),
    ("scripts/check_data.py", ["--data_dir", "data/suport"], ["did you mean data/support?"]),
    ("scripts/check_contamination.py", ["DATA", "--task_data", "row.jsonl"], ["did you mean rows.jsonl?"]),
    (
        "scripts/convert_hf_checkpoint.py",
        ["--checkpoint_dir", "checkpoints/org/rwa"],
        ["did you mean checkpoints/org/raw?"],
    ),
    (
        "scripts/convert_lit_checkpoint.py",
        ["TINY", "--output_dir", "rows.jsonl"],
        ["--output_dir rows.jsonl is a file"],
    ),
    ("scripts/convert_peft_adapter.py", ["--to", "lit", "TINY", "--peft_dir", "no"], ["no no (--peft_dir)"]),
    (
        "scripts/convert_peft_adapter.py",
        ["--to", "peft", "TINY", "--peft_dir", "no"],
        ["out/lora/tiny holds no finetuned"],
    ),
    ("finetune/lora.py", ["TINY", "DATA", "--out_dir", "out/full/z"], ["out/full/z holds another run; pass --resume"]),
    ("scripts/merge_lora.py", ["TINY"], ["out/lora/tiny holds no finetuned model"]),
    ("scripts/write_report.py", ["--finetuned_path", "out/lora/xx"], ["did you mean out/lora/x?"]),
    ("generate/chat.py", ["TINY", "--finetuned_path", "out/lora/xx"], ["did you mean out/lora/x?"]),
    ("scripts/serve.py", ["TINY", "--finetuned_path", "out/lora/xx"], ["did you mean out/lora/x?"]),
    (
        "scripts/serve.py",
        ["TINY", "--runs", "out/lora/x,out/lora/xx"],
        ["there is no out/lora/xx (--runs)", "did you mean out/lora/x?"],
    ),
    ("scripts/plan.py", ["--method", "lora", "TINY", "--data_dir", "data/suport"], ["did you mean data/support?"]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory as a user has it: a checkpoint, one not converted, data, rows, and runs."""
    place = tmp_path_factory.mktemp("work")
    files = {
        "checkpoints/org/tiny/lit_model.pth": "",
        "checkpoints/org/tiny/lit_config.json": "{}",
        "checkpoints/org/raw/config.json": "{}",
        "checkpoints/org/raw/model.safetensors": "",
        "data/support/meta.json": "{}",
        "rows.jsonl": "{}",
    }
    for method, name in (("lora", "x"), ("adapter", "y"), ("full", "z")):
        record = f'{{"method": "{method}", "base": "checkpoints/org/tiny"}}'
        files |= {f"out/{method}/{name}/finetuned.json": record, f"out/{method}/{name}/lit_model_finetuned.pth": ""}
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place


def without_torch(script, argv, folder):
    """A script in a process in which nothing that takes long can be imported."""
    places = {"TINY": ["--checkpoint_dir", "checkpoints/org/tiny"], "DATA": ["--data_dir", "data/support"]}
    words = [w for word in argv for w in places.get(word, [word.replace("TINY/", "checkpoints/org/tiny/")])]
    code = (
        "import runpy, sys\n"
        "for name in ('torch', 'lightning', 'numpy', 'jsonargparse', 'tokenizers'): sys.modules[name] = None\n"
        f"sys.argv = {[str(ROOT / script), *words]!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=env, timeout=60)


@pytest.mark.parametrize("script, argv, parts", PATHS)
def test_a_wrong_path_is_told_before_anything_slow_is_imported(script, argv, parts, folder):
    process = without_torch(script, argv, folder)
    assert_one_line_error(process, *parts)
    assert process.returncode == 1 and process.stderr.count("\n") == 1, process.stderr


def test_a_null_that_is_not_the_default_is_printed_by_skip_null_too():
    """Reading it back would give the default."""
    flags = flags_of(main_of("generate/lora.py"))
    assert flags["top_k"].default == 200
    printed = config_text(flags, {"top_k": None}, "skip_null")
    assert "top_k: null" in printed and "finetuned_path" not in printed


def test_every_script_with_a_path_to_read_is_among_those():
    reading = {"data_dir", "finetuned_path", "data_file", "csv_path", "json_path", "task_data", "sources", "peft_dir"}
    generate = {"generate/adapter.py", "generate/full.py", "finetune/adapter.py", "finetune/adapter_v2.py"}
    twins = {s for s in SCRIPTS if s.startswith("scripts/prepare_")} | generate | {"eval/lm_eval_harness_lora.py"}
    for script in set(SCRIPTS) - twins:
        if reading & set(flags_of(main_of(script))):
            assert script in {row[0] for row in PATHS}, script


def test_a_progress_bar_does_not_fill_a_log_file(tmp_path):
    (tmp_path / "script.py").write_text(
        "import time\nfrom lit_gpt.cli import run\ndef main():\n    from tqdm import tqdm\n"
        "    for _ in tqdm(range(40)):\n        time.sleep(0.02)\nrun(main)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for pace, most in ((None, 3), ("0.01", 100)):
        own = {} if pace is None else {"TQDM_MININTERVAL": pace}
        command = [sys.executable, "script.py"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env | own, timeout=60)
        n = done.stderr.count("%|")
        assert done.returncode == 0 and n <= most and (n > 10) == (pace is not None), done.stderr
