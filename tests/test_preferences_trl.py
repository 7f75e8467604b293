"""Losses and gradients of preferences and of GRPO are those of TRL's trainers on the same batch, in fp32; needs trl."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ours_of, tiny_hf, write_tokenizer

from lit_gpt.args import TrainArgs
from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.args.preferences import PreferenceArgs
from lit_gpt.convert.names import from_hf
from lit_gpt.data.answers import grouped, judged_alone, with_others
from lit_gpt.data.batches import batch_of
from lit_gpt.data.packing import Packing
from lit_gpt.data.store import IGNORE, stack
from lit_gpt.rollouts.drawing import Drawing
from lit_gpt.rollouts.loader import RolloutLoader
from lit_gpt.rollouts.objective import GrpoObjective
from lit_gpt.rollouts.rollout import batches_of, rollout_of
from lit_gpt.training.log_probs import answer_log_probs
from lit_gpt.training.preferences.objective import objective_of

pytest.importorskip("trl", reason="trl, whose losses these are compared with, is not installed")

KIND = "llama-gqa"


def pairs(prompts, lengths, seed=0):
    """Pairs with prompts and answers of these lengths, as our rows."""
    rng = np.random.default_rng(seed)
    rows = []
    for n, (good, bad) in zip(prompts, lengths, strict=True):
        prompt = rng.integers(1, 256, n).tolist()
        for length in (good, bad):
            answer = rng.integers(1, 256, length).tolist()
            rows.append((prompt + answer, [IGNORE] * n + answer))
    return grouped(stack(rows), np.arange(0, len(rows) + 1, 2))


UNEVEN = pairs((7, 1, 12), ((5, 3), (9, 2), (4, 11)))
BARE = pairs((1, 1, 1), ((6, 3), (6, 9), (6, 2)))
"""Prompts of one token and preferred answers of one length: TRL's ORPO takes the loss of prompts, too, and its mean
over all tokens of a batch is then that over the pairs."""


@pytest.fixture(scope="module")
def models():
    """The policy and the reference, as transformers' models."""
    policy, reference = tiny_hf(KIND), tiny_hf(KIND)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return policy, reference


@pytest.fixture(scope="module")
def trainer_of(models, tmp_path_factory):
    """Makes a trainer of TRL for the policy, with the reference where it takes one."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("trl")
    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "</s>"

    def trainer_of(kind, config, **settings):
        row = {"prompt": "a", "chosen": "b", "rejected": "c"}
        if "KTO" in kind.__name__:
            row = {"prompt": "a", "completion": "b", "label": True}
        args = config(output_dir=str(folder / "out"), report_to=[], use_cpu=True, bf16=False, **settings)
        reference = {"ref_model": models[1]} if kind.__name__ in ("DPOTrainer", "KTOTrainer") else {}
        data = Dataset.from_list([row] * 4)
        return kind(models[0], args=args, train_dataset=data, processing_class=tokenizer, **reference)

    return trainer_of


def theirs(model, loss):
    """Gradients of transformers' model under our names."""
    model.zero_grad()
    loss.backward()
    state = {name: p.grad for name, p in model.named_parameters()}
    state.setdefault("lm_head.weight", model.lm_head.weight.grad)
    return {n: x.clone() for n, x in from_hf(ours_of(model, KIND).config, state, state.__getitem__).items()}


def assert_same(models, loss, data, args):
    """Compares TRL's loss and all gradients with ours."""
    want = theirs(models[0], loss)
    policy, reference = (ours_of(model, KIND) for model in models)
    with torch.no_grad():
        batch = batch_of(data, range(len(data)))
        values = np.zeros(data.n_answers, dtype=np.float32)
        values[list(batch.answers)] = answer_log_probs(reference, batch).numpy()
    batch = batch_of(replace(data, reference=values if args.has_reference else None, share_up_to=512), range(len(data)))
    for p in policy.parameters():
        p.requires_grad_(True)
    found, _ = objective_of(args)(policy, batch)
    found = found / batch.n_terms
    torch.testing.assert_close(found, loss.detach(), rtol=1e-5, atol=1e-5)
    found.backward()
    for name, p in policy.named_parameters():
        size = want[name].abs().max() + 1e-9
        torch.testing.assert_close(p.grad / size, want[name] / size, rtol=1e-5, atol=1e-5, msg=name)


def sides(data, i):
    """Prompt, and the ids of the answers of a row."""
    prompt = data.prompt(i).tolist()
    return prompt, *(ids[len(prompt) :].tolist() for ids, _ in data.of(i))


@pytest.mark.parametrize("loss", ["dpo", "ipo", "dpo and sft"])
def test_dpo_and_ipo(loss, models, trainer_of):
    from trl import DPOConfig, DPOTrainer

    kinds = {"dpo": ["sigmoid"], "ipo": ["ipo"], "dpo and sft": ["sigmoid", "sft"]}[loss]
    data = BARE if "sft" in loss else UNEVEN
    trainer = trainer_of(DPOTrainer, DPOConfig, beta=0.3, loss_type=kinds, loss_weights=[1.0, 0.4][: len(kinds)])
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [dict(zip(keys, sides(data, i), strict=True)) for i in range(len(data))]
    found = trainer.compute_loss(models[0], trainer.data_collator(rows))
    args = PreferenceArgs(loss.partition(" ")[0], beta=0.3, sft_weight=0.4 if "sft" in loss else 0.0)
    assert_same(models, found, data, args)


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_losses_without_a_reference(loss, models, trainer_of):
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    if loss == "simpo":
        data, settings = UNEVEN, {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.6, "label_smoothing": 0.1}
        trainer = trainer_of(CPOTrainer, CPOConfig, beta=1.5, **settings)
        args = PreferenceArgs("simpo", beta=1.5, simpo_gamma=0.6, label_smoothing=0.1)
    else:
        data, trainer, args = BARE, trainer_of(ORPOTrainer, ORPOConfig, beta=0.4), PreferenceArgs("orpo", beta=0.4)
    rows = []
    for i in range(len(data)):
        prompt, *answers = sides(data, i)
        row = {"prompt": "", "prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for name, answer in zip(("chosen", "rejected"), answers, strict=True):
            row |= {f"{name}_input_ids": prompt + answer, f"{name}_attention_mask": [1] * len(prompt + answer)}
            row |= {f"{name}_labels": [-100] * len(prompt) + answer}
        rows.append(row)
    found, _ = trainer.get_batch_loss_metrics(models[0], trainer.data_collator(rows))
    assert_same(models, found, data, args)


def test_kto(models, trainer_of):
    from trl import KTOConfig, KTOTrainer

    data = with_others(judged_alone(UNEVEN), 2)
    settings = {"desirable_weight": 1.2, "undesirable_weight": 0.8}
    trainer = trainer_of(KTOTrainer, KTOConfig, beta=0.3, per_device_train_batch_size=2, **settings)
    keys = ("prompt_ids", "completion_ids", "KL_completion_ids")
    rows = [dict(zip(keys, sides(data, i), strict=True)) | {"label": bool(data.desirable[i])} for i in range(len(data))]
    found = trainer.compute_loss(models[0], trainer.data_collator(rows))
    assert_same(models, found, data, PreferenceArgs("kto", beta=0.3, **settings))


PROMPTS = ("the thing and an", "in", "theanin")
REWARDS = ((1.0, 0.0, 0.5, 0.0), (1.0, 1.0, 1.0, 1.0), (0.0, 0.25, 1.0, 1.0))
"""Of each prompt's answers; those to the second teach nothing but the divergence."""


def grpo_trainer(folder, reference, answers, args):
    """TRL's trainer of a model whose answers these are, with the reference of a folder."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    write_tokenizer(folder)
    reference.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "</s>"
    policy = tiny_hf(KIND)
    policy.config._name_or_path = str(folder)  # where TRL takes the reference from
    of_prompt = dict(zip(PROMPTS, answers, strict=True))

    def drawn(prompts, trainer):
        ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        groups = {prompt: iter(group) for prompt, group in of_prompt.items()}
        return {"prompt_ids": ids, "completion_ids": [next(groups[prompt]) for prompt in prompts], "logprobs": None}

    settings = {"per_device_train_batch_size": 4, "steps_per_generation": len(PROMPTS), "num_generations": 4}
    settings |= {
        "loss_type": args.normalization,
        "scale_rewards": "none" if args.normalization == "dr_grpo" else "group",
    }
    settings |= {"beta": args.kl_weight, "epsilon": args.clip, "max_completion_length": args.max_new_tokens}
    config = GRPOConfig(output_dir=str(folder / "out"), report_to=[], use_cpu=True, bf16=False, **settings)
    flat = [reward for group in REWARDS for reward in group]
    return GRPOTrainer(
        policy,
        reward_funcs=lambda prompts, completions, **more: flat,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": list(PROMPTS)}),
        processing_class=tokenizer,
        rollout_func=drawn,
    )


@pytest.mark.parametrize("normalization, kl_weight", [("dr_grpo", 0.0), ("dr_grpo", 0.3), ("grpo", 0.0), ("grpo", 0.3)])
def test_grpo(normalization, kl_weight, models, tmp_path):
    """A rollout, then a step on weights that are others by then: advantages, ratios, clip, divergence, division."""
    rng = np.random.default_rng(3)
    args = GrpoArgs(group_size=4, max_new_tokens=9, normalization=normalization, kl_weight=kl_weight)
    answers = [[rng.integers(1, 256, int(n)).tolist() for n in rng.integers(1, 9, 4)] for _ in PROMPTS]
    trainer = grpo_trainer(tmp_path, models[1], answers, args)
    policy = trainer.model.train()
    before = copy.deepcopy(policy)
    batch = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS for _ in range(4)])
    torch.manual_seed(2)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(torch.randn_like(p) * 0.03)
    loss = trainer.compute_loss(policy.eval(), batch)
    want = theirs(policy, loss)

    prompts = [trainer.processing_class(prompt)["input_ids"] for prompt in PROMPTS]
    rollout = rollout_of(prompts, answers, np.array(REWARDS, dtype=np.float32).reshape(-1))
    ours, drawing = ours_of(policy, KIND), Drawing(None, None, args, [1], nullcontext)  # type: ignore[arg-type]
    for model, into in ((before, rollout.old), (models[1], rollout.base)):
        settings = {"train": TrainArgs(), "device": torch.device("cpu"), "seed": 1, "autocast": nullcontext}
        made = replace(args, kl_weight=0.0)  # no updates to switch off: the reference is another model here
        other = Drawing(None, None, made, [1], nullcontext)  # type: ignore[arg-type]
        loader = RolloutLoader(ours_of(model, KIND), rollout.answers, drawing=other, folder=tmp_path, **settings)
        loader._compute(rollout, into)
    for p in ours.parameters():
        p.requires_grad_(True)
    batches = batches_of(rollout, range(3), Packing(30, 512), normalization=normalization, keeps_all=kl_weight > 0)
    assert len(batches) > 1
    found = [GrpoObjective(drawing)(ours, batch) for batch in batches]
    total = sum(part for part, _ in found) / sum(batch.n_terms for batch in batches)
    torch.testing.assert_close(total, loss.detach(), rtol=1e-5, atol=1e-5)
    assert sum(figures for _, figures in found)[3] > 0.5, "some tokens are clipped"
    total.backward()
    for name, p in ours.named_parameters():
        size = want[name].abs().max() + 1e-9
        torch.testing.assert_close(p.grad / size, want[name] / size, rtol=1e-5, atol=1e-5, msg=name)
