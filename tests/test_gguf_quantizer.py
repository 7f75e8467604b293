"""--gguf_type Q4_K_M and its kin: llama.cpp's program gets the very weights, and what it writes is read back."""

import shutil
import sys

import pytest
import torch
from with_llama_cpp import IDS, LlamaCpp, checkpoint, ours_of, write

from lit_gpt.convert.gguf import quantizing
from lit_gpt.convert.verify import difference_of
from lit_gpt.errors import UserError
from lit_gpt.model import GPT

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")


def stub(folder, monkeypatch, body):
    """A program of that name, alone on the PATH, that runs Python."""
    folder.mkdir()
    program = folder / quantizing.PROGRAM
    program.write_text(f"#!{sys.executable}\nimport shutil, sys\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return program


@pytest.mark.parametrize("dtype, whole", [("float32", "F32"), ("bfloat16", "BF16"), ("float16", "F16")])
def test_the_program_is_given_the_weights_as_they_are(dtype, whole, tmp_path, monkeypatch):
    stub(
        tmp_path / "bin", monkeypatch, "shutil.copy(sys.argv[1], sys.argv[2]); print(sys.argv, file=open('asked', 'w'))"
    )
    monkeypatch.chdir(tmp_path)
    _, config, state = checkpoint("llama", tmp_path / "there")
    state = {name: x.to(getattr(torch, dtype)) for name, x in state.items()}
    path = write(config, state, tmp_path / "there", tmp_path / "out", "Q4_K_M")
    assert [p.name for p in (tmp_path / "out").iterdir()] == [path.name] == ["tiny-Q4_K_M.gguf"]
    _, given, made, kind = eval((tmp_path / "asked").read_text())
    assert given == str(tmp_path / "out" / f"tiny-{whole}.gguf") and made == str(path) and kind == "Q4_K_M"
    found = {t.name: t for t in gguf.GGUFReader(path).tensors}["blk.0.ffn_up.weight"]
    got = torch.tensor(gguf.dequantize(found.data, found.tensor_type))
    assert torch.equal(got, state["transformer.h.0.mlp.fc_2.weight"].float())


def test_a_program_that_is_missing_or_fails_is_named(tmp_path, monkeypatch):
    _, config, state = checkpoint("llama", tmp_path / "there")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"Q5_K_M needs llama\.cpp's llama-quantize.*brew.*ollama create NAME .*q5_k_m"):
        write(config, state, tmp_path / "there", tmp_path / "out", "Q5_K_M")
    assert not list((tmp_path / "out").iterdir())
    stub(tmp_path / "bin", monkeypatch, "print('main: quantizing'); print('no room left'); sys.exit(3)")
    with pytest.raises(UserError, match=r"llama-quantize could not write Q5_K_M \(no room left\)"):
        write(config, state, tmp_path / "there", tmp_path / "out", "Q5_K_M")
    (tmp_path / "bin" / quantizing.PROGRAM).write_text(f"#!{sys.executable}\n")
    with pytest.raises(UserError, match=r"\(exit code 0\)"):
        write(config, state, tmp_path / "there", tmp_path / "out", "Q5_K_M")


@pytest.mark.parametrize("kind", quantizing.TYPES)
@torch.no_grad()
def test_what_the_real_program_writes_is_read_by_llama_cpp_and_by_us_alike(kind, tmp_path):
    """Where it is installed. Rows of 288 values go into no block of 256: it takes other types for those matrices."""
    if not shutil.which(quantizing.PROGRAM):
        pytest.skip("llama.cpp's llama-quantize is not on the PATH")
    _, config, state = checkpoint("llama-gqa", tmp_path / "there", hidden_size=256, intermediate_size=288)
    state = {name: x * 0.2 if x.dim() > 1 else x for name, x in state.items()}
    path = write(config, state, tmp_path / "there", tmp_path / "out", kind)
    got = ours_of(tmp_path / "out")(IDS)[0]
    theirs = LlamaCpp(path).log_probabilities(IDS[0].tolist())
    torch.testing.assert_close(got[-1].log_softmax(-1), theirs, rtol=0, atol=0.4)
    model = GPT(config).eval()
    model.load_state_dict(state)
    difference = difference_of(model(IDS)[0], got)
    assert 0 < difference.kl < 2 and path.stat().st_size < 0.6 * sum(2 * x.numel() for x in state.values())


def test_differences_have_words():
    before = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    after = torch.tensor([[1.0, 0.0, 9.0], [3.0, 2.0, 9.0]])  # a row more: it is not compared
    found = difference_of(before, after)
    p = torch.tensor([0.0, 2.0]).softmax(0)
    kl = (p * (p.log() - torch.tensor([3.0, 2.0]).log_softmax(0))).sum() / 2
    assert found.kl == pytest.approx(float(kl)) and (found.n_tokens, found.largest, found.agreement) == (2, 3.0, 0.5)
    assert (
        str(found)
        == f"KL divergence {kl:.2g} nats a token, 50.0% of next tokens equal, largest difference of a logit: 3"
    )
    assert str(difference_of(before, before)).startswith("KL divergence 0 nats a token, 100.0% of next tokens equal")
