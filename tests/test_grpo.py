"""Learning from graded answers: the loss, rollouts by the engine on the weights that train, and runs that resume."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from jobs import job_of
from tiny import gradients, tiny

from lit_gpt.args import FullArgs, LoRAArgs, PlanArgs, PrepareArgs, RunArgs, TrainArgs, ValidationArgs
from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.args.rollouts import CheckerArgs
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import load_finetuned
from lit_gpt.data.packing import Packing
from lit_gpt.data.prepare.run import Files, prepare
from lit_gpt.data.store import IGNORE, stack
from lit_gpt.errors import UserError
from lit_gpt.fabric import make_fabric
from lit_gpt.files import load_state
from lit_gpt.finetuning import finetune
from lit_gpt.generation.batching.pool import Pool
from lit_gpt.layers.linear import Linear
from lit_gpt.methods import METHODS
from lit_gpt.model import GPT
from lit_gpt.planning.devices import named
from lit_gpt.planning.plan import make_plan
from lit_gpt.report.metrics import read_metrics
from lit_gpt.rollouts.drawing import Drawing, switched_off
from lit_gpt.rollouts.objective import GrpoObjective, grpo
from lit_gpt.rollouts.rollout import batches_of, rollout_of


def test_the_loss_of_a_token_is_the_clipped_one():
    logs = torch.tensor([-1.0, -1.0, -1.0, -1.0], requires_grad=True)
    old = logs.detach() - torch.tensor([0.5, 0.5, -0.5, 0.0])  # more probable by e^0.5, twice, less, as it was
    advantage = torch.tensor([1.0, -1.0, -1.0, 2.0])
    losses, clipped, _ = grpo(logs, old, torch.zeros(4), advantage, GrpoArgs(clip=0.2))
    torch.testing.assert_close(losses.detach(), torch.tensor([-1.2, np.e**0.5, 0.8, -2.0], dtype=torch.float32))
    losses.sum().backward()
    assert clipped.tolist() == [True, False, True, False]
    torch.testing.assert_close(logs.grad, torch.tensor([0.0, np.e**0.5, 0.0, -2.0], dtype=torch.float32))
    base = logs.detach() + 0.3
    losses, _, kl = grpo(logs, logs.detach(), base, torch.zeros(4), GrpoArgs(kl_weight=0.5))
    torch.testing.assert_close(losses.detach(), 0.5 * kl)
    assert kl[0].item() == pytest.approx(np.exp(0.3) - 1.3, abs=1e-6)


def made_up(seed=0, n=3, size=4):
    """A rollout of n prompts, of which the second has nothing but right answers."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(1, 300, 6 + 5 * i).tolist() for i in range(n)]
    answers = [[rng.integers(1, 300, int(rng.integers(1, 9))).tolist() for _ in range(size)] for _ in prompts]
    rewards = rng.integers(0, 2, (n, size)).astype(np.float32)
    rewards[:, 0], rewards[:, 1], rewards[1] = 0, 1, 1
    return rollout_of(prompts, answers, rewards.reshape(-1)), prompts, answers, rewards


@pytest.mark.parametrize("normalization", ["dr_grpo", "grpo"])
def test_the_loss_of_a_step_is_that_of_each_answer_alone_however_it_is_cut(normalization):
    model, (rollout, prompts, answers, rewards) = tiny("llama-gqa"), made_up()
    METHODS["lora"].inject(model, LoRAArgs(lora_dropout=0.0))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    args = GrpoArgs(group_size=4, max_new_tokens=20, normalization=normalization)
    total = torch.zeros(())
    for prompt, group, scores in zip(prompts, answers, rewards, strict=True):
        advantages = scores - scores.mean()
        if normalization == "grpo":
            advantages = advantages / (scores.std(ddof=1) + 1e-4)
        for answer, a in zip(group, advantages, strict=True):
            logs = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1].log_softmax(-1)
            logs = logs.gather(-1, torch.tensor(answer)[:, None])[:, 0]
            ratio = torch.exp(logs - logs.detach())
            total = total - (ratio * float(a)).sum() / (len(answer) if normalization == "grpo" else 20)
    want = gradients(model, total / 12)
    objective = GrpoObjective(Drawing(None, None, args, [1], None))  # type: ignore[arg-type]
    for tokens, share in ((1000, 512), (40, 512), (1000, 0)):
        batches = batches_of(rollout, range(3), Packing(tokens, share), normalization=normalization, keeps_all=False)
        assert len(batches) > 1 or tokens == 1000
        assert sum(batch.n_terms for batch in batches) == 12 and sum(batch.n_samples for batch in batches) == 3
        assert sum(batch.n_answers for batch in batches) == 8, "what all have right is not computed"
        found = [objective(model, batch) for batch in batches]
        got = gradients(model, sum(loss for loss, _ in found) / 12)
        for name, g in want.items():
            torch.testing.assert_close(got[name], g, rtol=1e-4, atol=1e-6, msg=name)
        figures = sum(x for _, x in found) / 12
        tokens_drawn = sum(len(answer) for group in answers for answer in group)
        expected = [rewards.mean(), tokens_drawn / 12, 4 / 12, 0, 0]
        torch.testing.assert_close(figures, torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-5)


def test_updates_are_switched_off_for_the_divergence_from_the_base():
    ids, base = torch.arange(1, 9)[None], tiny("llama-gqa")
    want = base(ids)
    METHODS["lora"].inject(base, LoRAArgs(lora_dropout=0.0))
    for name, p in base.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.5)
    assert (base(ids) - want).abs().max() > 0.1
    with switched_off(base):
        torch.testing.assert_close(base(ids), want)
    assert (base(ids) - want).abs().max() > 0.1


@pytest.fixture(scope="module")
def place(tmp_path_factory, checkpoint):
    """A folder with prepared prompts."""
    place = tmp_path_factory.mktemp("grpo")
    rows = [{"instruction": f"say {w} {n}", "input": "", "output": "the"} for w in ("ab", "cd", "ef") for n in range(6)]
    (place / "rows.json").write_text(json.dumps(rows))
    settings = PrepareArgs(prompt_style="plain", check=False, test_split_fraction=0.2)
    prepare(Files((place / "rows.json",)), None, place / "data", checkpoint, args=settings)
    meta = json.loads((place / "data" / "meta.json").read_text())  # a random model hardly ever writes its one end token
    (place / "data" / "meta.json").write_text(json.dumps(meta | {"end_ids": list(range(100, 260))}))
    return place


@pytest.fixture
def learn(place, checkpoint, tmp_path):
    """Runs what finetune/grpo.py runs; returns the folder of the run."""

    def learn(name="run", train=None, grpo=None, method_args=None, method="lora", **more):
        settings = {"learning_rate": 0.02, "batch_size": 3, "max_steps": 5, "save_interval": 1, "keep_last": 9}
        args = FinetuneArgs(
            method=method,
            method_args=method_args or LoRAArgs(lora_dropout=0.0, lora_projection=True, lora_mlp=True),
            checkpoint_dir=checkpoint,
            data_dir=place / "data",
            out_dir=tmp_path / name,
            train=TrainArgs(**settings | {"warmup_steps": 0, "micro_batch_tokens": 150} | (train or {})),
            validation=ValidationArgs(eval_interval=100),
            grpo=replace(GrpoArgs(group_size=6, max_new_tokens=6), **(grpo or {})),
            check=CheckerArgs("regex", pattern="[a-z]"),
            **more,
        )
        finetune(make_fabric("32-true", args.run.seed), args)
        return tmp_path / name

    return learn


def weights(run_dir):
    return load_state(run_dir / "lit_model_lora_finetuned.pth", "the finetune script")


def forget_after_two_steps(run_dir):
    """Leaves what a run had that was killed there: between steps of one rollout, if there are several."""
    (run_dir / "lit_model_lora_finetuned.pth").unlink()
    for folder in run_dir.glob("checkpoints/step-*"):
        if folder.name > "step-000002":
            shutil.rmtree(folder)


@pytest.mark.parametrize("grpo", [{}, {"steps_per_rollout": 3, "kl_weight": 0.1}], ids=["each step", "several steps"])
def test_a_run_that_was_killed_goes_on_to_the_same_weights_bit_for_bit(learn, grpo):
    run_dir = learn("killed", grpo=grpo)
    one = weights(run_dir)
    start = load_state(run_dir / "checkpoints" / "step-000002" / "lit_model_lora_finetuned.pth", "x")
    assert any(not torch.equal(start[name], x) for name, x in one.items())
    rewards = [value for _, value in read_metrics(run_dir / "metrics.csv").by_step("reward", "n_terms")]
    assert len(rewards) == 5 and any(0 < reward < 1 for reward in rewards), "there is something to learn"
    forget_after_two_steps(run_dir)
    learn("killed", grpo=grpo, run=RunArgs(resume=True))
    two = weights(run_dir)
    assert one.keys() == two.keys() and all(torch.equal(two[name], x) for name, x in one.items())
    if grpo:
        forget_after_two_steps(run_dir)
        shutil.rmtree(run_dir / "rollouts")
        with pytest.raises(UserError, match="are gone or damaged"):
            learn("killed", grpo=grpo, run=RunArgs(resume=True))


def test_rewards_rise_and_are_reported(learn, capsys):
    run_dir = learn("up", {"max_steps": 24, "batch_size": 6, "save_interval": 40})
    metrics = read_metrics(run_dir / "metrics.csv")
    rewards = [value for _, value in metrics.by_step("reward", "n_terms")]
    assert np.mean(rewards[-8:]) > np.mean(rewards[:8]) + 0.15, rewards
    assert metrics.column("val_reward") and "Reward" in (run_dir / "report.html").read_text()
    assert not metrics.column("val_idle"), "validation learns from no group"
    assert "reward" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_merged_checkpoint_computes_what_the_run_computes(learn, checkpoint, method):
    made = {"method": method, "method_args": FullArgs()} if method == "full" else {}
    run_dir = learn("merged", merge=True, **made)
    ids = torch.arange(3, 11)[None]
    fabric = make_fabric("32-true", 1)
    run = load_finetuned(fabric, checkpoint, run_dir)[0](ids)
    merged, base = (load_base(fabric, folder, None)[0](ids) for folder in (run_dir / "merged", checkpoint))
    assert torch.allclose(merged, run, atol=1e-4)
    assert (base - run).abs().max() > 100 * (merged - run).abs().max()


def test_the_plan_knows_rollouts(learn, capsys):
    learn("planned", plan=PlanArgs(dry_run=True, device="rtx4090"))
    assert "rollouts" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["cpu", "rtx4090"])
def test_the_plan_has_the_memory_of_the_answers_that_are_written_at_once(device):
    """The KV cache of 64 answers to long prompts outweighs a step of one short pass, and a CPU packs the weights."""
    longest, grpo = 90, GrpoArgs(group_size=8, max_new_tokens=400, rollout_rows=64)
    samples = stack([(list(range(1, longest + 1)), [IGNORE] * (longest - 3) + [1, 2, 3])] * 40)
    job = replace(job_of(batch_size=16, micro_batch_tokens=90), device=named(device), grpo=grpo)
    items = make_plan(job, (samples, samples)).memory
    model = GPT(job.config)
    pool = Pool(model, 64 * (longest + 400), torch.float32)
    passing = sum(items[name] for name in ("activations", "logits", "one block's work"))
    assert items["KV cache of answers"] + passing == sum(x.nbytes for x in (*pool.k, *pool.v))
    packed = sum(2 * m.weight.numel() for m in model.modules() if isinstance(m, Linear))
    assert items["weights packed for answering"] == (packed if device == "cpu" else 0)
    assert "KV cache of answers" not in make_plan(replace(job, grpo=None), (samples, samples)).memory


@pytest.mark.parametrize("kl_weight", [0.0, 0.1])
def test_groups_of_one_reward_are_idle_even_where_all_are(kl_weight):
    """The loop needs a micro-batch, so that one such group is computed; its answers were not counted."""
    model, (rollout, *_) = tiny("llama-gqa"), made_up()
    METHODS["lora"].inject(model, LoRAArgs(lora_dropout=0.0))
    rollout.rewards[:] = 1
    rollout.base[:] = 0
    objective = GrpoObjective(Drawing(None, None, GrpoArgs(group_size=4, kl_weight=kl_weight), [1], None))  # type: ignore[arg-type]
    batches = batches_of(rollout, range(3), Packing(1000, 512), normalization="dr_grpo", keeps_all=kl_weight > 0)
    reward, _, idle, *_ = (sum(objective(model, batch)[1] for batch in batches) / 12).tolist()
    assert (reward, idle) == (1.0, 1.0)


def test_a_divergence_needs_updates_that_can_be_switched_off(learn):
    with pytest.raises(UserError, match="--kl_weight needs updates"):
        learn(grpo={"kl_weight": 0.1}, method_args=LoRAArgs(lora_dora=True))
