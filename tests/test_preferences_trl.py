"""Losses and gradients of preferences are those of TRL's trainers on the same batch, in fp32; needs trl."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ours_of, tiny_hf, write_tokenizer

from lit_gpt.args.preferences import PreferenceArgs
from lit_gpt.convert.names import from_hf
from lit_gpt.data.answers import grouped, judged_alone, with_others
from lit_gpt.data.batches import batch_of
from lit_gpt.data.store import IGNORE, stack
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
