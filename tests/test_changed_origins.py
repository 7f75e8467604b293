"""A base, a configuration or data that changed since a run began are refused, and damaged weights are noticed."""

import json
import os
from dataclasses import asdict, replace
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from damage import flipped, outcome_of
from runs import run_of
from tiny import make_samples

from lit_gpt.args import LoRAArgs
from lit_gpt.args.folders import CONFIG, RUN, WEIGHTS
from lit_gpt.checkpoints.base import load_base, load_pretrained
from lit_gpt.checkpoints.origin import origin_of
from lit_gpt.checkpoints.runs import Run, load_finetuned, read_run, save_run
from lit_gpt.checkpoints.trained import load_trained, save_trained, trained_path
from lit_gpt.config import Config
from lit_gpt.data.store import Samples
from lit_gpt.errors import UserError
from lit_gpt.fabric import make_fabric
from lit_gpt.files import load_state, save_state, save_stream, spec_of, sums
from lit_gpt.files.checksums import contents_of
from lit_gpt.files.sums import Summed
from lit_gpt.generation.batching.runs import load_shared
from lit_gpt.merge.write import write_merged
from lit_gpt.methods import lora
from lit_gpt.model import GPT
from lit_gpt.training.memory import checkpoint_bytes
from lit_gpt.training.run.resume import require_same
from lit_gpt.training.run.start import load_model

SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 60, "padding_multiple": 64, "block_size": 64}
SIZES |= {"norm": "rms", "mlp": "gated", "activation": "silu", "parallel_residual": False, "rotary_percentage": 1.0}


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    torch.manual_seed(0)
    model = GPT(Config(**SIZES))
    save_state(model.state_dict(), folder / WEIGHTS)
    model.config.to_json(folder / CONFIG)
    return folder


@pytest.fixture
def finetuned(base, tmp_path):
    """A LoRA run on the base."""
    folder, args = tmp_path / "run", LoRAArgs()
    folder.mkdir()
    model, digest = load_base(make_fabric("32-true"), base)
    lora.inject(model, args)
    save_trained(model, trained_path(folder, "lora"))
    training = {"precision": "32-true"}
    save_run(Run("lora", asdict(args), "plain", str(base), digest, {}, training, {}, None, origin_of(base)), folder)
    return folder


def loads(base, finetuned):
    return load_finetuned(make_fabric("32-true"), base, finetuned)


def change_config(base, **changes):
    values = json.loads((base / CONFIG).read_text())
    assert changes.keys() <= values.keys()
    (base / CONFIG).write_text(json.dumps(values | changes))


def change_weight(base, index=1, by=1.0, name="transformer.h.1.mlp.fc_1.weight"):
    """Changes a value that is in no sample of the tensor."""
    state = {n: x.clone() for n, x in load_state(base / WEIGHTS, "").items()}
    state[name].view(-1)[index] += by
    save_state(state, base / WEIGHTS)


CHANGES = [{"rope_base": 5e5}, {"norm_eps": 1e-3}, {"activation": "gelu"}, {"sliding_window": 8}]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_a_changed_configuration_is_named_by_whatever_uses_the_run(base, finetuned, tmp_path, change):
    before = read_run(finetuned)
    loads(base, finetuned)
    change_config(base, **change)
    (name,) = change
    with pytest.raises(UserError, match=f"{name} in {CONFIG} of the base was .* and is {change[name]!r}"):
        loads(base, finetuned)
    with pytest.raises(UserError, match=f"{name} in"):
        write_merged(base, finetuned, run=before, out_dir=tmp_path / "merged")
    now = run_of("lora")
    earlier = replace(now, base_files=before.base_files)
    with pytest.raises(UserError, match=f"{name} in .*--allow_changes true"):
        require_same(replace(now, base_files=origin_of(base)), earlier, allow_changes=False)
    require_same(replace(now, base_files=origin_of(base)), now, allow_changes=False)  # an old run recorded nothing


def test_a_record_whose_configuration_is_none_is_named(finetuned):
    record = json.loads((finetuned / RUN).read_text())
    for damaged in (5, ["n_layer"], "x", True):
        (finetuned / RUN).write_text(json.dumps(record | {"base_files": record["base_files"] | {"config": damaged}}))
        with pytest.raises(UserError, match=r"base_files.*config"):
            read_run(finetuned)


def test_a_changed_weight_is_noticed_wherever_it_is(base, finetuned):
    before = origin_of(base)
    change_weight(base, by=0.0)
    assert origin_of(base)["contents"] == before["contents"]
    change_weight(base)
    with pytest.raises(UserError, match="has other weights than before"):
        loads(base, finetuned)
    now = run_of("lora")
    changed = replace(now, base_files=origin_of(base))
    with pytest.raises(UserError, match="has other weights than before"):
        require_same(changed, replace(now, base_files=before), allow_changes=False)


def test_the_same_weights_are_the_same_however_the_file_was_written(base, finetuned, tmp_path):
    state = load_state(base / WEIGHTS, "")
    one = contents_of(base / WEIGHTS)
    specs = {name: spec_of(x) for name, x in state.items()}
    save_stream(specs, reversed(state.items()), tmp_path / "streamed.pth")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(dict(reversed(state.items())), tmp_path / "none.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert one == contents_of(tmp_path / "streamed.pth") == contents_of(tmp_path / "none.pth")
    half = {name: x.bfloat16() for name, x in state.items()}
    save_state(half, base / WEIGHTS)
    assert contents_of(base / WEIGHTS).layout != one.layout
    loads(base, finetuned)  # another dtype of the same weights, as before


def test_the_same_weights_in_another_dtype_are_another_run(base):
    before = replace(run_of("lora"), base_files=origin_of(base))
    save_state({name: x.bfloat16() for name, x in load_state(base / WEIGHTS, "").items()}, base / WEIGHTS)
    now = replace(before, base_files=origin_of(base))
    with pytest.raises(UserError, match=r"another dtype or layout than before.*--allow_changes true"):
        require_same(now, before, allow_changes=False)
    require_same(now, before, allow_changes=True)


def flip_in_place(base, index=4, bit=1, name="transformer.h.1.mlp.fc_1.weight"):
    """Flips a bit of a tensor as a failing disk does: size, checksums and time of the file stay as they are."""
    path = base / WEIGHTS
    before = path.stat()
    values = load_state(path, "")[name].numpy().tobytes()
    with open(path, "r+b") as file:
        at = file.read().find(values) + index
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ bit]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def resumes(base, finetuned):
    """Loads the base as a run does that goes on from a checkpoint, for which the run's folder stands here."""
    args = SimpleNamespace(method="lora", method_args=LoRAArgs(), checkpoint_dir=base, quantize=None, sft_run=None)
    return load_model(make_fabric("32-true"), args, finetuned)


def serves(base, finetuned):
    model, digest = load_base(make_fabric("32-true"), base)
    return load_shared(model, digest, base, {"run": finetuned})


def merges(base, finetuned):
    return write_merged(base, finetuned, run=read_run(finetuned), out_dir=finetuned.parent / "merged")


def of_flips():
    """Places of a bit: within the samples of a tensor and outside of them, in each byte, in the last tensor, too."""
    tensors = ("transformer.h.1.mlp.fc_1.weight", "transformer.ln_f.weight", "lm_head.weight")
    return [(name, index, 1 << bit) for name in tensors for index, bit in ((0, 7), (5, 0), (126, 3), (127, 7))]


@pytest.mark.parametrize("use", [loads, serves, merges, resumes])
def test_a_bit_flip_in_the_base_is_noticed_by_whatever_uses_a_run(base, finetuned, use):
    whole = (base / WEIGHTS).read_bytes()
    for name, index, bit in of_flips():
        flip_in_place(base, index, bit=bit, name=name)
        with pytest.raises(UserError, match=r"is damaged .*convert_hf_checkpoint|trained on other weights"):
            use(base, finetuned)
        assert not (finetuned.parent / "merged").exists()
        (base / WEIGHTS).write_bytes(whole)
    use(base, finetuned)


def test_a_base_that_was_damaged_when_the_run_began_is_told_from_one_that_is_now(base, tmp_path):
    whole = (base / WEIGHTS).read_bytes()
    flip_in_place(base)
    run, folder = run_of("lora"), tmp_path / "early"
    folder.mkdir()
    _, digest = load_base(make_fabric("32-true"), base)
    save_run(replace(run, base=str(base), base_digest=digest, base_files=origin_of(base)), folder)
    (base / WEIGHTS).write_bytes(whole)
    with pytest.raises(UserError, match="was damaged when the run began"):
        resumes(base, folder)


def sums_of(x):
    """The digest of one tensor, which readers of a third of it each find together, too."""
    digest = Summed({"x": x}.get, ["x"]).digest()
    parts = [Summed({"x": x}.get, ["x"], (i, 3)) for i in range(3)]
    found: list[bytes] = []
    for part in parts:
        part.digest(lambda mine: found.extend(mine) or [mine])
    assert parts[0].digest(lambda mine: [[text] for text in found]) == digest
    return digest


def test_blocks_of_a_tensor_that_changed_places_are_noticed_whatever_its_dtype_and_address():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        x = (torch.randn(5, 70_001) * 50).to(dtype)
        known = sums_of(x)
        assert known == sums_of(x.clone()) == sums_of(torch.cat([x[:1], x])[1:]) != sums_of(x.view(70_001, 5))
        assert known == sums_of(torch.stack([x, x], 2)[:, :, 0])
        blocks = x.clone()
        blocks.view(-1)[: 2 * 65_536] = blocks.view(-1)[: 2 * 65_536].roll(65_536)
        assert sums_of(blocks) != known
        for index in (0, 1, 65_536, x.numel() - 1):
            changed = x.clone()
            changed.view(-1)[index : index + 1].view(torch.uint8)[-1] ^= 1
            assert sums_of(changed) != known, (dtype, index)


def test_all_bytes_are_read_once_and_each_tensor_that_is_stored_once(base, monkeypatch):
    """The sums take one pass over what is loaded anyway: no second reading of the file, and a tied head counts once."""
    seen, summed = [], sums._summed
    monkeypatch.setattr(sums, "_summed", lambda x, part: seen.append(x.nbytes) or summed(x, part))
    load_base(make_fabric("32-true"), base)
    assert sum(seen) == sum(x.nbytes for x in load_state(base / WEIGHTS, "").values())
    tied, seen[:] = Config(**SIZES | {"tie_embeddings": True}), []
    save_state(GPT(tied).state_dict(), base / WEIGHTS)
    tied.to_json(base / CONFIG)
    load_base(make_fabric("32-true"), base)
    state = load_state(base / WEIGHTS, "")
    assert sum(seen) == sum(x.nbytes for name, x in state.items() if name != "lm_head.weight")
    seen[:] = []
    model = load_pretrained(make_fabric("32-true"), base)  # nobody compares these
    assert not seen and all(torch.equal(x, state[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_weights_that_are_no_numbers_are_named(base, value, precision):
    change_weight(base, by=value)
    with pytest.raises(UserError, match=r"1 of the 4,096 values of transformer.h.1.mlp.fc_1.weight are NaN or inf"):
        load_base(make_fabric(precision), base)


def test_large_weights_are_numbers(base):
    change_weight(base, by=3e38)
    change_weight(base, by=3e38, index=2)
    load_base(make_fabric("32-true"), base)
    with pytest.raises(UserError, match="too large for float16"):
        load_base(make_fabric("16-true"), base)


def test_no_damage_to_trained_weights_goes_unnoticed(finetuned):
    path, random = trained_path(finetuned, "lora"), Random(0)
    whole, state = path.read_bytes(), {n: x.clone() for n, x in load_trained(path).items()}

    def read():
        again = load_trained(path)
        assert again.keys() == state.keys() and all(torch.equal(again[n], x) for n, x in state.items())

    counts = {"read": 0, "refused": 0}
    for _ in range(150):
        path.write_bytes(flipped(whole, random))
        outcome = outcome_of(read, len(whole))
        assert not outcome.is_fault, outcome
        counts[outcome.kind] += 1
    assert counts["refused"] > 50


def test_every_token_and_label_counts_and_both_splits(tmp_path):
    data = make_samples(2_000)
    assert len(data.ids) > 4_096 * 2
    for part in ("ids", "labels"):
        other = {name: getattr(data, name).copy() for name in ("ids", "labels", "offsets")}
        other[part][1] += 1
        changed = Samples(**other)
        assert changed.contents() != data.contents()
    assert Samples(data.ids, data.labels, data.offsets.copy()).contents() == data.contents()
    run = run_of("lora")
    before = replace(run, data={"digest": "a", "contents": {"train": "1", "val": "2"}})
    for split in ("train", "val"):
        now = replace(run, data={"digest": "a", "contents": {"train": "1", "val": "2", split: "3"}})
        with pytest.raises(UserError, match=f"the tokens or labels of {split} are others than before"):
            require_same(now, before, allow_changes=False)
        require_same(now, before, allow_changes=True)
        require_same(now, run, allow_changes=False)  # an old run recorded nothing


@pytest.mark.parametrize("tied", [True, False])
def test_room_for_a_checkpoint_counts_a_tied_head_once(tmp_path, tied):
    model = GPT(Config(**SIZES | {"tie_embeddings": tied, "vocab_size": 4_000}))
    save_trained(model, tmp_path / "x.pth")
    size = (tmp_path / "x.pth").stat().st_size
    assert 3 * size * 0.95 < checkpoint_bytes(model) <= 3 * size
    assert np.prod(model.lm_head.weight.shape) * 4 > size / 4
