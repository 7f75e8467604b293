"""Plans for several devices: what each holds, which strategy that needs, and from which number on more do not pay."""

from dataclasses import replace
from pathlib import Path

import pytest
from jobs import DATA, job_of

from lit_gpt.args import LoRAArgs, TrainArgs, ValidationArgs
from lit_gpt.args.cluster import ClusterArgs
from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.args.preferences import PreferenceArgs
from lit_gpt.errors import UserError
from lit_gpt.families import config_for
from lit_gpt.parallel.possible import require_possible
from lit_gpt.planning.devices import named
from lit_gpt.planning.plan import make_plan
from lit_gpt.planning.show import lines_of

LLAMA = replace(config_for("open_llama_7b"), padded_vocab_size=32000)


def plan_of(n, method="full", link="nvlink", **changes):
    job = job_of(method, LLAMA, named("a100-40gb"), precision="bf16-true", micro_batch_tokens=1024, batch_size=32)
    return make_plan(replace(job, n_devices=n, link=link, **changes), DATA)


def test_what_one_device_does_not_hold_is_divided_and_what_it_holds_is_not():
    one, eight = plan_of(1), plan_of(8)
    assert not one.fits and not one.steps and eight.fits and eight.job.sharded
    for name in ("trained weights", "gradients", "optimizer"):
        assert eight.memory[name] == one.memory[name] // 8
    assert eight.by_strategy[0] > eight.job.device.n_bytes > eight.by_strategy[1] == eight.needed
    assert not plan_of(8, "lora").job.sharded and plan_of(8, "lora", strategy="fsdp", sharded=True).job.sharded
    assert plan_of(8, "lora").needed == plan_of(1, "lora").needed


def test_nothing_is_sent_by_one_and_what_all_send_grows_to_twice_the_gradients_or_the_model():
    lora, full = plan_of(64, "lora"), plan_of(64)
    assert lora.steps[0].sent == full.steps[0].sent == 0 and lora.steps[0].speedup == 1
    gradients = lora.memory["gradients"]
    assert [step.sent / gradients for step in lora.steps] == pytest.approx([2 * (s.n - 1) / s.n for s in lora.steps])
    n_bytes = plan_of(1).memory["trained weights"]
    assert full.steps[-1].sent / n_bytes == pytest.approx(3 * 63 / 64)  # twice together, and the gradients
    assert [step.n for step in full.steps] == [1, 2, 4, 8, 16, 32, 64]


def test_more_devices_than_a_step_has_samples_or_the_network_feeds_do_not_pay():
    assert any("a step has too few samples" in line for line in lines_of(plan_of(256, "lora")))
    assert any("they wait for each other's bytes" in line for line in lines_of(plan_of(8, link="ethernet")))
    fast, slow = plan_of(8), plan_of(8, link="ethernet")
    assert slow.times.training > 3 * fast.times.training and fast.times.total < plan_of(1).times.total


def test_what_several_devices_cannot_do_is_refused_by_name():
    folders = {name: Path(name) for name in ("checkpoint_dir", "data_dir", "out_dir")}
    settings = {"train": TrainArgs(), "validation": ValidationArgs(), **folders}
    kto = FinetuneArgs("lora", LoRAArgs(), **settings, preference=PreferenceArgs(loss="kto"))
    require_possible(kto, 1)
    with pytest.raises(UserError, match=r"--loss kto takes one device.*; leave --devices out"):
        require_possible(kto, 2)
    grpo = FinetuneArgs("lora", LoRAArgs(), **settings, grpo=GrpoArgs())
    require_possible(grpo, 2)
    with pytest.raises(UserError, match="--strategy fsdp does not go with answers that the model draws"):
        require_possible(replace(grpo, cluster=ClusterArgs(strategy="fsdp")), 2)
