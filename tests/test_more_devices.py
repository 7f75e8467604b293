"""Several devices train what one trains: the same steps, weights and checkpoints, whoever keeps which part of them."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_hf, write_tokenizer
from device_runs import GLOO, script, together
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from script_processes import start

from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.names import from_hf
from lit_gpt.convert.readers import open_source
from lit_gpt.data.dealing import balance, dealt
from lit_gpt.files import save_state
from lit_gpt.parallel import watch
from lit_gpt.report.metrics import read_metrics
from lit_gpt.training.run.metrics import METRICS

KINDS = {"mha": "llama", "gqa": "llama-gqa", "moe": "mixtral", "tied": "llama-tied"}
ROWS = [{"instruction": f"Say {i}", "input": "", "output": f"{i} " * (1 + i * 7 % 13)} for i in range(60)]
FLAGS = ["--data_dir", "data", "--batch_size", 6, "--micro_batch_tokens", 150, "--learning_rate", 1e-3]
FLAGS += ["--warmup_steps", 0]
OF_METHOD = {
    "lora": ["--lora_dropout", 0.2, "--lora_r", 4, "--lora_mlp", "true", "--lora_head", "true"],
    "adapter": ["--adapter_start_layer", 1],
    "adapter_v2": ["--adapter_start_layer", 0],
    "full": [],
}
SWEEP = os.environ.get("LIT_GPT_SWEEP", "0").replace("0", "")
"""1 runs all combinations, which takes half an hour, and another text those whose name begins with it; bf16-true and
bf16-mixed run the usual ones in that precision. The differences are printed. Nothing runs some of them in fp32."""
BF16 = SWEEP.startswith("bf16")
SETTINGS = [  # method, kind, strategy, quantization
    ("lora", "gqa", "ddp", None),
    ("lora", "tied", "fsdp", "bnb.nf4"),
    ("adapter", "mha", "ddp", None),
    ("adapter_v2", "moe", "fsdp", "int8"),
    ("full", "tied", "fsdp", None),
]
if SWEEP and not BF16:
    SETTINGS = [
        (method, kind, strategy, quantize)
        for method in OF_METHOD
        for kind in KINDS
        for strategy in ("ddp", "fsdp")
        for quantize in (None, "int8", "bnb.nf4")
        if (method != "full" or quantize is None) and f"{method}-{kind}-".startswith(SWEEP.replace("1", ""))
    ]
N_STEPS = 20 if SWEEP else 10
FLAGS += ["--save_interval", N_STEPS // 2, "--eval_interval", N_STEPS // 2]
HALF = f"checkpoints/step-{N_STEPS // 2:06d}"
CLOSE = {None: 1e-6, "bnb.nf4": 1e-6, "int8": 2e-4 if SWEEP else 1e-4}
"""How far apart the weights may be; int8 layers also round what they are given, to the one or the other side."""
UNLUCKY = {"full-mha-ddp-None": 5e-6, "full-mha-fsdp-None": 5e-6, "lora-tied-fsdp-int8": 2e-3}
"""Settings of the sweep in which rounding is seen: AdamW makes a step of a gradient that is nothing else, of one
embedding in the former two; in the last one a value that int8 rounds lies between two numbers early on."""


def out_of(setting, n):
    return f"{'-'.join(map(str, setting))}-{n}"


def command(setting, n, *flags, steps=N_STEPS):
    method, kind, strategy, quantize = setting
    argv = [f"finetune/{method}.py", "--checkpoint_dir", kind, *FLAGS, *OF_METHOD[method], "--max_steps", steps]
    argv += ["--quantize", quantize] if quantize else []
    argv += ["--strategy", strategy] if n > 1 else []
    argv += ["--precision", SWEEP if BF16 and not quantize else "32-true"]
    return [*argv, "--out_dir", out_of(setting, n), *flags]


def weights(folder):
    (path,) = folder.glob("lit_model*_finetuned.pth")
    return torch.load(path, weights_only=True)


def difference(a, b):
    """Of all weights together, relative to their size."""
    assert a.keys() == b.keys() and a
    squares = [
        [(x.double() - y.double()).square().sum(), x.double().square().sum()]
        for x, y in zip(a.values(), b.values(), strict=True)
    ]
    off, size = map(sum, zip(*squares, strict=True))
    return float((off / size).sqrt())


REFUSED = [
    (["--strategy", "fsdp", "--optimizer", "adamw8bit"], "--optimizer adamw8bit does not go with --strategy fsdp"),
    (["--strategy", "fsdp", "--precision", "16-mixed"], "--precision 16-mixed does not go with --strategy fsdp"),
    (["--strategy", "fsdp", "--best_task", "arc_easy"], "--best_task does not go with --strategy fsdp"),
    (["--offload_gradients", "true"], "--offload_gradients true is for one device"),
    (["--devices", 3], "--devices 3 --num_nodes 1: torchrun started 2 processes"),
]
LORA, NF4, FULL = ("lora", "gqa", "ddp", None), ("lora", "tied", "fsdp", "bnb.nf4"), ("full", "tied", "fsdp", None)
EVALUATION = ["eval/lm_eval_harness.py", "--checkpoint_dir", "gqa", "--eval_tasks", "[sums,words]"]
EVALUATION += ["--task_path", "tasks", "--bootstrap_iters", 0, "--log_samples", "true"]
PAIRS = [{"prompt": f"Say {i}", "chosen": f"{i} " * (1 + i % 5), "rejected": f"no {i % 7}"} for i in range(40)]
PREFERENCE = ["finetune/preference.py", "--checkpoint_dir", "gqa", "--data_dir", "pairs", "--batch_size", 6]
PREFERENCE += ["--micro_batch_tokens", 150, "--max_steps", 5, "--learning_rate", 1e-3, "--warmup_steps", 0]
GRPO = ["finetune/grpo.py", "--checkpoint_dir", "gqa", "--data_dir", "prompts", "--checker", "regex"]
GRPO += ["--pattern", "[a-z]"]
GRPO += ["--batch_size", 5, "--group_size", 4, "--max_new_tokens", 6, "--micro_batch_tokens", 150, "--lora_mlp", "true"]
GRPO += ["--steps_per_rollout", 2, "--kl_weight", 0.1, "--max_steps", 5, "--learning_rate", 2e-2, "--warmup_steps", 0]
GRPO += ["--eval_interval", 5, "--save_interval", 1, "--keep_last", 9, "--precision", "32-true"]
MERGING = ["scripts/merge_lora.py", "--checkpoint_dir", "gqa", "--finetuned_path", out_of(LORA, 2)]
VALIDATION = ["eval/validate.py", "--checkpoint_dir", "gqa", "--data_dir", "data"]
TASK = """
dataset_path: json
dataset_kwargs: {data_files: {test: tasks/rows.jsonl}}
test_split: test
doc_to_text: "{{text}}"
doc_to_target: gold
"""


def write_tasks(folder):
    """Two tasks of lm-eval: one asks for log-probabilities, one for texts."""
    folder.mkdir()
    rows = [{"text": f"{n} and {n} is", "answers": [str(2 * n), "nothing", "a number"], "gold": 0} for n in range(9)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds = {"sums": 'output_type: multiple_choice\ndoc_to_choice: "{{answers}}"\nmetric_list: [{metric: acc}]\n'}
    kinds["words"] = "output_type: generate_until\ngeneration_kwargs: {max_gen_toks: 6, until: []}\n"
    for name, more in kinds.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{TASK}{more}")


def poison(folder, copy, rank):
    """A copy of a checkpoint in which only the rows are numbers that one of two processes keeps."""
    shutil.copytree(folder, copy)
    state = torch.load(folder / WEIGHTS, weights_only=True)
    for x in {x.data_ptr(): x for x in state.values()}.values():
        half = -(-len(x) // 2)
        (x[half:] if rank == 0 else x[:half]).fill_(float("nan"))
    save_state(state, copy / WEIGHTS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with checkpoints of several kinds and data, and runs of each setting by one process and by two."""
    place = tmp_path_factory.mktemp("devices")
    for name, kind in KINDS.items():
        hf = tiny_hf(kind, hidden_size=64, intermediate_size=96) if name != "moe" else tiny_hf(kind)
        hf.save_pretrained(place / name)
        write_tokenizer(place / name)
        source = open_source(place / name)
        config = config_from_hf(source.hf_config, name, "config.json")
        save_state(from_hf(config, source.names, source.get), place / name / WEIGHTS)
        config.to_json(place / name / CONFIG)
    (place / "rows.json").write_text(json.dumps(ROWS))
    (place / "pairs.json").write_text(json.dumps(PAIRS))
    write_tasks(place / "tasks")
    for rank in range(2):
        poison(place / FULL[1], place / f"poisoned-{rank}", rank)
    flags = ["--data_file", "rows.json", "--destination_path", "data", "--prompt_style", "plain"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        script(["scripts/prepare_alpaca.py", "--checkpoint_dir", "gqa", *flags])
        flags = ["--json_path", "pairs.json", "--destination_path", "pairs"]
        script(["scripts/prepare_preferences.py", "--checkpoint_dir", "gqa", *flags])
        shutil.copytree("data", "prompts")
        meta = json.loads(Path("prompts/meta.json").read_text())  # a random model hardly ever writes its one end token
        Path("prompts/meta.json").write_text(json.dumps(meta | {"end_ids": list(range(100, 260))}))
        for setting in SETTINGS:
            script(command(setting, 1))
    if not SWEEP:
        shutil.copytree(place / out_of(NF4, 1), place / "from-1")  # to be gone on with from its half by two
    return place


@pytest.fixture(scope="module")
def ran(place):
    """How the runs of two processes ended, by rank, and what the first one said."""
    runs, last = [command(setting, 2) for setting in SETTINGS], [*command(FULL, 2), "--out_dir", "no-memory"]
    if SWEEP:
        return together(runs, 2, place, last)
    runs += [[*command(NF4, 2), "--out_dir", "from-1", "--resume", f"from-1/{HALF}"]]
    runs += [[*command(FULL, 2), "--checkpoint_dir", "poisoned-{rank}", "--out_dir", "by-rows"]]
    runs += [[*EVALUATION, "--save_filepath", "scores-2.json"], VALIDATION, [*PREFERENCE, "--out_dir", "prefer-2"]]
    runs += [[*MERGING, "--out_dir", "merged-2"]]
    runs += [[*GRPO, "--out_dir", "grpo-2"], [*GRPO, "--strategy", "fsdp", "--out_dir", "refused"]]
    runs += [[*PREFERENCE, "--strategy", "fsdp", "--seed", 7, "--out_dir", "prefer-fsdp"]]
    runs += [[*command(LORA, 1), *flags, "--out_dir", "refused"] for flags, _ in REFUSED]
    return together(runs, 2, place, last)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(map(str, s)))
def test_two_processes_end_with_the_weights_of_one(place, ran, setting):
    ended, *_ = ran
    assert [of_rank[SETTINGS.index(setting)] for of_rank in ended] == [None, None]
    one, two = (weights(place / out_of(setting, n)) for n in (1, 2))
    print(f"{out_of(setting, 2)} {SWEEP if BF16 else 'fp32'}: weights {difference(one, two):.1e} off")
    close = UNLUCKY.get("-".join(map(str, setting)), CLOSE[setting[3]])
    assert difference(one, two) < (0.1 if BF16 else close)
    half = weights(place / out_of(setting, 1) / HALF)
    assert BF16 or difference(one, half) > 5 * CLOSE[setting[3]], "they go on learning"


def test_one_goes_on_from_what_two_wrote_and_two_from_what_one_wrote(place, ran, monkeypatch):
    monkeypatch.chdir(place)
    assert ran[0][0][len(SETTINGS)] is None
    one, from_2 = weights(place / out_of(NF4, 1)), out_of(NF4, 2)
    assert difference(one, weights(place / "from-1")) < CLOSE[NF4[3]]
    script([*command(NF4, 1), "--out_dir", from_2, "--resume", f"{from_2}/{HALF}"])
    assert difference(one, weights(place / from_2)) < CLOSE[NF4[3]]


def test_a_process_reads_no_rows_but_those_that_it_keeps(place, ran):
    assert [of_rank[len(SETTINGS) + 1] for of_rank in ran[0]] == [None, None]
    assert difference(weights(place / out_of(FULL, 2)), weights(place / "by-rows")) == 0


def test_files_are_those_of_one_process(place, ran):
    for name in ("lit_model_finetuned.pth", "state.pth"):
        one, two = (place / out_of(FULL, n) / HALF / name for n in (1, 2))
        assert two.stat().st_size == pytest.approx(one.stat().st_size, rel=0.05), "a tied weight is there once"
    a, b = (torch.load(place / out_of(FULL, n) / HALF / "state.pth", weights_only=True) for n in (1, 2))
    for name, x in a["optimizer"]["state"][0].items():
        assert torch.allclose(b["optimizer"]["state"][0][name], x, atol=1e-6)


def test_an_evaluation_and_a_validation_by_two_processes_are_those_of_one(place, ran, monkeypatch, capsys):
    monkeypatch.chdir(place)
    at = len(SETTINGS) + 2
    assert [of_rank[at : at + 2] for of_rank in ran[0]] == [[None, None]] * 2
    script([*EVALUATION, "--save_filepath", "scores-1.json"])
    one, two = (json.loads((place / f"scores-{n}.json").read_text()) for n in (1, 2))
    assert one["results"] == two["results"] and two["n-samples"]["sums"]["effective"] == 9
    for name in ("sums", "words"):
        for a, b in zip(one["samples"][name], two["samples"][name], strict=True):
            if name == "words":
                assert a["resps"] == b["resps"] and a["resps"][0][0]
            else:
                found = [[float(answer[0][0]) for answer in sample["resps"]] for sample in (a, b)]
                assert found[0] == pytest.approx(found[1], rel=1e-5)
    capsys.readouterr()
    script(VALIDATION)
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("val loss")]
    assert ran[1].count(said) == 1


def test_what_two_processes_learn_from_preferences_is_what_one_learns(place, ran, monkeypatch):
    monkeypatch.chdir(place)
    assert [of_rank[len(SETTINGS) + 4] for of_rank in ran[0]] == [None, None]
    script([*PREFERENCE, "--out_dir", "prefer-1"])  # with the reference's figures that two have computed
    assert difference(weights(place / "prefer-1"), weights(place / "prefer-2")) < CLOSE[None]
    assert [of_rank[len(SETTINGS) + 8] for of_rank in ran[0]] == [None, None]
    assert ran[1].count("the reference's log-probabilities of") == 3, "training, validation, and rows of another seed"
    script([*PREFERENCE, "--seed", 7, "--out_dir", "prefer-7"])
    assert difference(weights(place / "prefer-7"), weights(place / "prefer-fsdp")) < CLOSE[None]


def test_what_two_processes_learn_from_answers_of_their_own_is_what_one_learns(place, ran, monkeypatch):
    monkeypatch.chdir(place)
    assert [of_rank[len(SETTINGS) + 6] for of_rank in ran[0]] == [None, None]
    script([*GRPO, "--out_dir", "grpo-1"])
    one, two = (weights(place / f"grpo-{n}") for n in (1, 2))
    assert difference(one, two) < CLOSE[None]
    assert difference(one, weights(place / "grpo-1/checkpoints/step-000001")) > 1e-3, "there is something to learn"
    columns = [read_metrics(place / f"grpo-{n}" / METRICS) for n in (1, 2)]
    for name in ("reward", "kl", "idle"):
        one_found, two_found = (dict(m.by_step(name, "n_terms")) for m in columns)
        assert one_found and two_found == pytest.approx(one_found, abs=1e-5)
    validated = [dict(m.column("val_reward")) for m in columns]
    assert validated[0] and validated[1] == pytest.approx(validated[0], abs=1e-6)
    shutil.rmtree("grpo-2/checkpoints/step-000005")
    Path("grpo-2/lit_model_lora_finetuned.pth").unlink()  # one goes on in the middle of a rollout of two
    script([*GRPO, "--out_dir", "grpo-2", "--resume", "grpo-2/checkpoints/step-000003"])
    assert difference(one, weights(place / "grpo-2")) < CLOSE[None]


def test_two_processes_merge_and_compare_what_one_does(place, ran, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert [of_rank[len(SETTINGS) + 5] for of_rank in ran[0]] == [None, None]
    capsys.readouterr()
    script([*MERGING, "--out_dir", "merged-1"])
    assert (place / "merged-1" / WEIGHTS).read_bytes() == (place / "merged-2" / WEIGHTS).read_bytes()
    figures = r"""Merged against trained, on .* \((\d+) tokens\):
Largest difference of a logit: (\S+)
KL divergence: (\S+) nats a token
Same most likely token: (\S+)%"""
    one, two = (re.search(figures, said) for said in (capsys.readouterr().out, ran[1]))
    assert one and two, "printed once, by the leader"
    rounding = (0, 1e-6, 1e-8, 1e-3)  # of which a divergence of some 1e-9 consists
    for a, b, off in zip(one.groups(), two.groups(), rounding, strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-2, abs=off)


def test_a_device_without_memory_ends_a_divided_run_with_one_line(place, ran):
    said = [line for line in ran[2].splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "rank 1 on " in said[0] and "the GPU has too little memory" in said[0]
    assert "OutOfMemoryError" not in ran[2] and (place / "no-memory" / "checkpoints" / "step-000000").is_dir()


def test_what_several_devices_cannot_do_is_refused_by_name_before_anything_is_loaded(place, ran):
    for of_rank in ran[0]:
        for (_, message), said in zip(REFUSED, of_rank[-len(REFUSED) :], strict=True):
            assert message in said
        assert "--strategy fsdp does not go with answers that the model draws" in of_rank[len(SETTINGS) + 7]
    assert not (place / "refused").exists()


def test_the_leader_alone_speaks_and_writes_the_figures_of_all(place, ran):
    assert ran[1].count("Number of trainable parameters") == len(SETTINGS) + 6, "once for each run"
    one, two = (read_metrics(place / out_of(LORA, n) / METRICS) for n in (1, 2))
    for name in ("loss", "val_loss"):
        losses = [dict(m.by_step("loss", "n_targets") if name == "loss" else m.column(name)) for m in (one, two)]
        assert losses[0].keys() == losses[1].keys()
        for step, loss in losses[0].items():
            assert losses[1][step] == pytest.approx(loss, abs=2e-5)
    assert one.columns["samples"][-1] == two.columns["samples"][-1] == 6 * N_STEPS


def test_a_process_that_is_killed_ends_all_with_one_line_and_the_run_goes_on_from_its_checkpoint(place, monkeypatch):
    flags = ["--devices", 2, "--save_interval", 2, "--out_dir", "killed"]
    process = start(
        "finetune/lora.py", *command(LORA, 1)[1:], *flags, cwd=place, env=GLOO, stderr=subprocess.PIPE, anew=True
    )
    for line in process.stdout:
        if " step 5: " in line:
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()  # a template's host, too
    (child,) = (int(pid) for pid in children if b"lora.py" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(child, signal.SIGKILL)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - began < 60
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert said == [
        "error: rank 1 was ended by SIGKILL; the newest whole checkpoint stays, and --resume true goes on from it"
    ]
    assert "Traceback" not in errors
    monkeypatch.chdir(place)
    script([*command(LORA, 1), "--out_dir", "killed", "--resume", "true"])
    assert difference(weights(place / out_of(LORA, 1)), weights(place / "killed")) < CLOSE[None]


def test_the_thread_of_fabric_that_kills_without_a_word_is_ended():
    leader, child = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    observer = _ChildProcessObserver(main_pid=leader.pid, child_processes=[child], sleep_period=0.1)
    observer.start()
    try:
        watch._end_observer()
        child.kill()
        observer.join(30)
        assert not observer.is_alive()
        with pytest.raises(subprocess.TimeoutExpired):  # it lives
            leader.wait(1)
    finally:
        leader.kill()


def test_a_process_whose_leader_is_killed_before_they_are_connected_ends(place):
    """It would wait for an hour for a store that nobody opens."""
    flags = ["--devices", 2, "--out_dir", "early"]
    process = start(
        "finetune/lora.py", *command(LORA, 1)[1:], *flags, cwd=place, env=GLOO, stderr=subprocess.PIPE, anew=True
    )
    children, end = [], time.monotonic() + 60
    while not children and time.monotonic() < end:
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        children = [pid for pid in found if b"lora.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    process.kill()
    process.communicate(timeout=60)
    (child,) = children
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < end
        time.sleep(0.2)


def test_samples_are_dealt_evenly_and_each_once():
    lengths = np.random.default_rng(0).integers(5, 400, 500)
    rows = np.random.default_rng(1).permutation(500)[:128].tolist()
    for n in (1, 2, 3, 8):
        hands = dealt(lengths, rows, n)
        assert sorted(row for hand in hands for row in hand) == sorted(rows) and len(hands) == n
        assert balance(lengths, [rows], n) > 0.98
    assert dealt(lengths, rows[:1], 3) == [rows[:1], [], []] and dealt(lengths, rows, 1) == [rows]
