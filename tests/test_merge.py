"""What leaves a LoRA run computes what the run does: merged checkpoints, PEFT's adapters, and runs made of those."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from chats import save_run_of
from conftest import ROOT, assert_one_line_error
from script_processes import run

from lit_gpt.args import LoRAArgs
from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import Run, load_finetuned, read_run, save_run
from lit_gpt.checkpoints.trained import save_trained, trained_path
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.names import from_hf
from lit_gpt.convert.peft.runs import read_adapter, write_adapter
from lit_gpt.convert.readers import open_source
from lit_gpt.data.store import save, stack
from lit_gpt.errors import UserError
from lit_gpt.files import load_state, save_state
from lit_gpt.lightning import Fabric
from lit_gpt.merge.compare import compare, texts_to_compare
from lit_gpt.merge.record import merged_runs, trained_style
from lit_gpt.merge.write import write_merged
from lit_gpt.methods import lora
from lit_gpt.tokenizer import Tokenizer

ALL = {f"lora_{t}": True for t in ("query", "key", "value", "projection", "mlp")}
VARIANTS = {
    "q and v": {},
    "all": ALL | {"lora_head": True},
    "rslora": ALL | {"lora_scaling": "rslora"},
    "dora": ALL | {"lora_dora": True},
    "pissa": ALL | {"lora_init": "pissa"},
}
IDS = torch.randint(0, 320, (2, 16), generator=torch.Generator().manual_seed(1))


def fabric():
    return Fabric(accelerator="cpu", devices=1, precision="32-true")


def made_run(folder, checkpoint, quantize=None, style="alpaca", seed=0, data=None, precision="32-true", **flags):
    """A run whose updates are random, and its logits."""
    model, digest = load_base(fabric(), checkpoint, quantize)
    args = LoRAArgs(lora_r=4, lora_alpha=6, lora_dropout=0.0, **flags)
    torch.manual_seed(seed)
    lora.inject(model, args)
    for name, p in model.named_parameters():
        if lora.trainable(name):
            with torch.no_grad():
                p += torch.randn_like(p) * 0.05
    folder.mkdir()
    save_trained(model, trained_path(folder, "lora"))
    save_run(
        Run("lora", asdict(args), style, str(checkpoint), digest, data or {}, {"precision": precision}, {}, quantize),
        folder,
    )
    with torch.no_grad():
        return model.eval()(IDS)


@pytest.fixture(scope="module")
def neox(downloaded):
    """A converted checkpoint whose projections of queries, keys and values are one."""
    return converted(downloaded["neox"])


def converted(folder):
    """Converts a checkpoint in its folder, and returns that."""
    source = open_source(folder)
    config = config_from_hf(source.hf_config, folder.name, "config.json")
    save_state(from_hf(config, source.names, source.get), folder / WEIGHTS)
    config.to_json(folder / CONFIG)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_merged_checkpoint_computes_what_the_run_does_and_is_not_merged_again(variant, checkpoint, tmp_path):
    want = made_run(tmp_path / "run", checkpoint, **VARIANTS[variant])
    torch.testing.assert_close(load_finetuned(fabric(), checkpoint, tmp_path / "run")[0].eval()(IDS), want)
    out, record = tmp_path / "merged", read_run(tmp_path / "run")
    write_merged(checkpoint, tmp_path / "run", record, out)
    model, _ = load_base(fabric(), out)
    base, _ = load_base(fabric(), checkpoint)
    torch.testing.assert_close(model.eval()(IDS), want, rtol=1e-3, atol=1e-3)
    assert (base.eval()(IDS) - want).abs().max() > 0.1
    difference = compare(fabric(), checkpoint, tmp_path / "run", out, [IDS[0].tolist()])
    assert difference.n_tokens == 16 and difference.largest < 1e-3 and difference.agreement == 1
    with pytest.raises(UserError, match=r"merged into .* already"):
        write_merged(out, tmp_path / "run", record, tmp_path / "twice")
    with pytest.raises(UserError):
        write_merged(checkpoint, tmp_path / "run", record, out)  # it holds something
    assert not (tmp_path / "twice").exists()


@torch.no_grad()
def test_a_quantized_run_merges_into_what_it_saw_or_into_the_checkpoints_own_weights(checkpoint, tmp_path):
    want = made_run(tmp_path / "run", checkpoint, "bnb.nf4", **ALL)
    distances = {}
    for base in ("trained", "16bit"):
        write_merged(checkpoint, tmp_path / "run", read_run(tmp_path / "run"), tmp_path / base, base, torch.float32)
        distances[base] = (load_base(fabric(), tmp_path / base)[0].eval()(IDS) - want).abs().max().item()
    assert distances["trained"] < 1e-3 < distances["16bit"]
    text = IDS[0].tolist()
    p = load_finetuned(fabric(), checkpoint, tmp_path / "run")[0].eval()(IDS[:1])[0]
    q = load_base(fabric(), tmp_path / "16bit")[0].eval()(IDS[:1])[0]
    found = compare(fabric(), checkpoint, tmp_path / "run", tmp_path / "16bit", [text[:5], text[:16]])
    rows = [*range(5), *range(16)]  # the first tokens of a text are those of a shorter one
    kl = torch.nn.functional.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="none").sum(-1)
    assert found.n_tokens == 21 and found.largest == pytest.approx((p - q).abs().max().item(), rel=1e-4)
    assert found.kl == pytest.approx(kl[rows].mean().item(), rel=1e-3)
    assert found.agreement == pytest.approx((p.argmax(-1) == q.argmax(-1))[rows].float().mean().item()) and found.kl > 0


@pytest.mark.parametrize("precision, dtype", [("bf16-true", torch.bfloat16), ("16-true", torch.float16)])
def test_what_was_trained_on_in_16_bits_is_the_checkpoint_rounded(precision, dtype, checkpoint, tmp_path):
    """A checkpoint in 32 bits, and updates of zeros: what is written is what the training saw, or the checkpoint."""
    made_run(tmp_path / "run", checkpoint, precision=precision)
    weights = trained_path(tmp_path / "run", "lora")
    zeros = {name: torch.zeros_like(x) for name, x in load_state(weights, "test").items()}
    save_state(zeros, weights)
    state = load_state(checkpoint / WEIGHTS, "test")
    for base, to in (("trained", dtype), ("16bit", torch.float32)):
        out = tmp_path / base
        write_merged(checkpoint, tmp_path / "run", read_run(tmp_path / "run"), out, base, torch.float32)
        written = load_state(out / WEIGHTS, "test")
        assert all(torch.equal(written[name], x.to(to).float()) for name, x in state.items())
        assert any(not torch.equal(written[name], x) for name, x in state.items()) == (base == "trained")
    write_merged(checkpoint, tmp_path / "run", read_run(tmp_path / "run"), tmp_path / "small", "16bit", dtype)
    written = load_state(tmp_path / "small" / WEIGHTS, "test")
    assert all(torch.equal(written[name], x.to(dtype)) for name, x in state.items())


def test_a_second_run_merges_into_the_checkpoint_of_the_first_and_the_record_has_both(checkpoint, tmp_path):
    made_run(tmp_path / "run", checkpoint)
    write_merged(checkpoint, tmp_path / "run", read_run(tmp_path / "run"), tmp_path / "once")
    made_run(tmp_path / "next", tmp_path / "once", style="chatml", seed=1)
    write_merged(tmp_path / "once", tmp_path / "next", read_run(tmp_path / "next"), tmp_path / "twice")
    assert [trained_style(folder) for folder in (checkpoint, tmp_path / "once", tmp_path / "twice")] == [
        None, "alpaca", "chatml",
    ]  # fmt: skip
    assert [run["base"] for run in merged_runs(tmp_path / "twice")] == [str(checkpoint), str(tmp_path / "once")]
    for name in ("run", "next"):
        with pytest.raises(UserError, match=r"merged into .* already"):
            write_merged(tmp_path / "twice", tmp_path / name, read_run(tmp_path / name), tmp_path / "again")
    made_run(tmp_path / "other", checkpoint, seed=2)
    for folder, name in ((tmp_path / "once", "other"), (checkpoint, "next")):
        with pytest.raises(UserError, match="was trained on other weights"):
            write_merged(folder, tmp_path / name, read_run(tmp_path / name), tmp_path / "again")
    (tmp_path / "twice" / "merged.json").write_text("{")
    with pytest.raises(UserError, match=r"merged\.json is not valid JSON"):
        trained_style(tmp_path / "twice")


def test_what_is_compared_are_the_samples_of_the_training_if_they_are_there(checkpoint, tmp_path):
    tokenizer = Tokenizer(checkpoint)
    rows = stack([([n] * 200, [n] * 200) for n in range(5, 10)])
    meta = {"tokenizer": tokenizer.fingerprint(), "samples": {"train": 5, "val": 5}}
    meta |= {"checkpoint_dir": str(checkpoint), "prompt_style": "plain"}
    save(tmp_path / "data", {"train": rows, "val": rows}, meta)
    run_of = {"style": "plain", "data": {"folder": str(tmp_path / "data"), "tokenizer": meta["tokenizer"]}}
    made_run(tmp_path / "run", checkpoint, **run_of)
    texts, what = texts_to_compare(read_run(tmp_path / "run"), checkpoint)
    assert texts == [[5] * 200, [6] * 200, [7] * 112] and str(tmp_path / "data") in what
    save(tmp_path / "data", {"train": rows, "val": rows}, meta | {"tokenizer": "another"})
    texts, what = texts_to_compare(read_run(tmp_path / "run"), checkpoint)
    assert texts == [tokenizer.encode("What food do llamas eat?")] and "is not there" in what


@pytest.mark.smoke
def test_the_script_merges_says_what_changed_and_leaves_a_checkpoint_for_every_script(checkpoint, tmp_path):
    made_run(tmp_path / "run", checkpoint)
    done = run(
        "scripts/merge_lora.py", "--checkpoint_dir", checkpoint, "--finetuned_path", tmp_path / "run", "--out_dir",
        tmp_path / "merged", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Same most likely token: 100.00%" in done.stdout and "KL divergence" in done.stdout
    ask = ("--prompt", "say this", "--input", "that", "--max_new_tokens", 4, "--temperature", 0)
    answer = run("generate/base.py", "--checkpoint_dir", tmp_path / "merged", *ask, cwd=tmp_path)
    assert answer.returncode == 0 and "Prompt style: alpaca" in answer.stderr, answer.stderr
    of_run = ("--checkpoint_dir", checkpoint, "--finetuned_path", tmp_path / "run")
    assert answer.stdout == run("generate/lora.py", *of_run, *ask, cwd=tmp_path).stdout
    plain = run(
        "generate/base.py", "--checkpoint_dir", tmp_path / "merged", *ask, "--prompt_style", "plain", cwd=tmp_path
    )
    assert plain.stdout.startswith("say this\n\nthat") and "Prompt style" not in plain.stderr
    again = run(
        "scripts/merge_lora.py", "--checkpoint_dir", tmp_path / "merged", "--finetuned_path", tmp_path / "run",
        "--out_dir", tmp_path / "twice", cwd=tmp_path,
    )  # fmt: skip
    assert_one_line_error(again, "already")


@pytest.mark.smoke
@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama-gqa", "llama-tied"])
def test_a_full_run_becomes_a_checkpoint_that_exports(kind, downloaded, tmp_path):
    from transformers import AutoModelForCausalLM

    base = converted(Path(shutil.copytree(downloaded[kind], tmp_path / f"tiny-{kind}")))
    run_dir = save_run_of("full", base, tmp_path / "run")
    done = run(
        "scripts/merge_lora.py", "--checkpoint_dir", base, "--finetuned_path", run_dir, "--out_dir",
        tmp_path / "merged", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0 and "Largest difference of a logit: 0\n" in done.stdout, done.stderr
    assert trained_style(tmp_path / "merged") == "alpaca"
    model, _ = load_base(fabric(), tmp_path / "merged")
    assert torch.equal(model(IDS), load_finetuned(fabric(), base, run_dir)[0](IDS))
    assert (model.lm_head.weight is model.transformer.wte.weight) == (kind == "llama-tied")
    done = run(
        "scripts/convert_lit_checkpoint.py", "--checkpoint_dir", tmp_path / "merged", "--output_dir", tmp_path / "hf",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert (theirs(IDS).logits - model(IDS)).abs().max() < 1e-3
    again = run("generate/base.py", "--checkpoint_dir", run_dir, cwd=tmp_path)
    assert_one_line_error(again, "scripts/merge_lora.py", "makes a checkpoint of it")


@pytest.mark.smoke
@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "neox"])
@pytest.mark.parametrize("variant", ["q and v", "all", "rslora", "dora", "pissa"])
def test_peft_loads_a_run_with_the_same_logits_and_it_comes_back_bit_for_bit(
    family, variant, checkpoint, neox, tmp_path
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = checkpoint if family == "llama" else neox
    flags = VARIANTS[variant]
    if family == "neox" and variant == "q and v":
        flags = {"lora_key": True}  # theirs is one projection
    want = made_run(tmp_path / "run", folder, **flags)
    write_adapter(folder, tmp_path / "run", tmp_path / "peft", False)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "peft").eval()
    got = theirs(IDS).logits
    torch.testing.assert_close(got / want.abs().max(), want / want.abs().max(), rtol=1e-4, atol=1e-5)
    read_adapter(folder, tmp_path / "peft", tmp_path / "back", None, False)
    states = [load_state(trained_path(tmp_path / name, "lora"), "test") for name in ("run", "back")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@torch.no_grad()
@pytest.mark.parametrize(
    "damage, says", [("lacks", "lacks transformer"), ("shape", "the model needs"), ("more", "extra")]
)
def test_a_runs_weights_that_do_not_fit_its_model_are_refused_by_name(damage, says, checkpoint, tmp_path):
    """Loaded for answers or merged: nothing is left out in silence."""
    made_run(tmp_path / "run", checkpoint)
    path = trained_path(tmp_path / "run", "lora")
    weights = load_state(path, "test")
    name = next(iter(weights))
    changed = {n: x.clone() for n, x in weights.items() if damage != "lacks" or n != name}
    if damage == "shape":
        changed[name] = changed[name][:1]
    if damage == "more":
        changed["extra.lora_A.0"] = torch.zeros(1)
    save_state(changed, path)
    with pytest.raises(UserError, match=says):
        load_finetuned(fabric(), checkpoint, tmp_path / "run")
    with pytest.raises(UserError, match=says):
        write_merged(checkpoint, tmp_path / "run", read_run(tmp_path / "run"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_that_was_a_run_of_another_base_is_refused(checkpoint, tmp_path):
    made_run(tmp_path / "run", checkpoint)
    write_adapter(checkpoint, tmp_path / "run", tmp_path / "peft", overwrite=False)
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    save_state({name: x + 1 for name, x in load_state(checkpoint / WEIGHTS, "test").items()}, other / WEIGHTS)
    with pytest.raises(UserError, match="was trained on other weights"):
        read_adapter(other, tmp_path / "peft", tmp_path / "back", None, overwrite=False)
    assert not (tmp_path / "back").exists()


def test_an_adapter_that_peft_made_becomes_a_run(checkpoint, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def saved(modules):
        settings = LoraConfig(r=4, lora_alpha=6, lora_dropout=0.0, target_modules=modules)
        theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), settings).eval()
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(p, std=0.1)
        theirs.save_pretrained(tmp_path / "peft")
        return theirs

    theirs = saved(["q_proj", "v_proj", "o_proj"])
    read_adapter(checkpoint, tmp_path / "peft", tmp_path / "run", "plain", False)
    model, record = load_finetuned(fabric(), checkpoint, tmp_path / "run")
    assert record.prompt_style == "plain"
    want = theirs(IDS).logits
    torch.testing.assert_close(model.eval()(IDS) / want.abs().max(), want / want.abs().max(), rtol=1e-4, atol=1e-5)


def test_the_recipe_is_one_that_the_script_takes(tmp_path):
    recompute = ROOT / "finetune/recipes/lora_all_linear.yaml"
    done = run("finetune/lora.py", "--config", recompute, "--print_config", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lora_scaling: rslora" in done.stdout and "batch_size: 16" in done.stdout
    assert json.dumps(True) in done.stdout
