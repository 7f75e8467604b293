"""Who serves an export asks as the training did, and stops where its answers end: transformers, llama.cpp, Ollama."""

import json
import shutil
import subprocess
from dataclasses import asdict, replace
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import requests
from conftest import ROOT
from styled_conversations import KINDS, conversations, folder_of, messages, text_of

from lit_gpt.args import LoRAArgs
from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import Run, read_run, save_run
from lit_gpt.checkpoints.trained import save_trained, trained_path
from lit_gpt.convert.modelfile import write_modelfile
from lit_gpt.lightning import Fabric
from lit_gpt.merge.record import MERGED
from lit_gpt.merge.write import write_merged
from lit_gpt.methods import lora
from lit_gpt.prompts import STYLES, Turn, open_style
from lit_gpt.prompts.chat_template import read_templates
from lit_gpt.prompts.exported import carry_style
from lit_gpt.prompts.go import go_of
from lit_gpt.prompts.jinja import jinja_of
from lit_gpt.tokenizer import Tokenizer

BASE = "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + eos_token }}{% endfor %}[assistant]"
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""With a system text of its own, as those of SmolLM2 and Qwen 2.5."""
QUESTION = [Turn("user", "Q")]
TRAINED = ["alpaca", "llama2", "gemma", "vicuna"]


def script(name):
    spec = spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def base_of(checkpoint, kind, folder):
    """A converted checkpoint with the tokenizer of a kind of model, a chat template, an older one, two with names."""
    folder.mkdir()
    for name in (WEIGHTS, CONFIG, "config.json"):
        shutil.copyfile(checkpoint / name, folder / name)
    folder_of(kind, folder)
    (folder / "chat_template.jinja").write_text(BASE)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools!")
    path = folder / "tokenizer_config.json"
    older = [{"name": "default", "template": "older"}, {"name": "rag", "template": "documents!"}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": older}))
    return folder


def merged_of(base, style, folder):
    """What a run in that style becomes, and what the merging said."""
    model, digest = load_base(Fabric(accelerator="cpu", devices=1, precision="32-true"), base)
    args = LoRAArgs(lora_r=1)
    lora.inject(model, args)
    run_dir = folder.with_name("run")
    run_dir.mkdir()
    save_trained(model, trained_path(run_dir, "lora"))
    save_run(Run("lora", asdict(args), style, str(base), digest, {}, {"precision": "32-true"}, {}, None), run_dir)
    return folder, write_merged(base, run_dir, read_run(run_dir), folder)


def shown_by_transformers(folder, turns, **settings):
    from transformers import AutoTokenizer

    reference, asks = AutoTokenizer.from_pretrained(folder), turns[-1].role == "user"
    return reference.apply_chat_template(messages(turns), add_generation_prompt=asks, tokenize=False, **settings)


@pytest.mark.parametrize("style", TRAINED)
def test_a_merged_run_and_its_export_have_the_chat_template_of_the_training(style, checkpoint, tmp_path, capsys):
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    base = base_of(checkpoint, "gemma", tmp_path / "base")
    merged, said = merged_of(base, style, tmp_path / "merged")
    says = f"Prompt style {style}: the chat template that goes along is that style's, not the base's own"
    assert says in said and "The weights are in float32" in said
    script("convert_lit_checkpoint")(merged, tmp_path / "hf")
    assert f"Prompt style {style}: the chat template that goes along is that style's\n" in capsys.readouterr().out
    tokenizer = Tokenizer(base)
    trained = open_style(style, base, tokenizer)
    for folder in (merged, tmp_path / "hf"):
        reference = AutoTokenizer.from_pretrained(folder)
        for turns in conversations():
            asks = turns[-1].role == "user"
            got = reference.apply_chat_template(messages(turns), add_generation_prompt=asks, tokenize=False)
            assert got.removeprefix("<s>") == text_of(trained.exchanges(turns), "</s>").removeprefix("<s>")
            assert got.startswith("<s>") and not got.startswith("<s><s>")
        assert reference.apply_chat_template(messages(QUESTION), chat_template="tool_use", tokenize=False) == "tools!"
        assert reference.apply_chat_template(messages(QUESTION), chat_template="rag", tokenize=False) == "documents!"
        assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())
        is_stated = (folder / "generation_config.json").is_file()  # else transformers takes what config.json says
        of_model = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
        stops = (GenerationConfig.from_pretrained(folder) if is_stated else of_model).eos_token_id
        assert tokenizer.token_to_id(trained.end or "</s>") in (stops if isinstance(stops, list) else [stops])
        assert Tokenizer(folder).stop_ids >= {tokenizer.token_to_id(trained.end or "</s>"), tokenizer.eos_id}


def test_a_folder_merged_before_its_template_went_along_is_exported_with_it(checkpoint, tmp_path, capsys):
    base = base_of(checkpoint, "llama", tmp_path / "base")
    (base / MERGED).write_text(json.dumps({"prompt_style": "alpaca", "runs": []}))
    before = (base / "chat_template.jinja").read_text()
    for format in ("hf", "lit"):
        script("convert_lit_checkpoint")(base, tmp_path / format, format=format)
        assert "Prompt style alpaca" in capsys.readouterr().out
        assert shown_by_transformers(tmp_path / format, QUESTION).endswith("tion:\nQ\n\n### Response:\n")
    assert (base / "chat_template.jinja").read_text() == before


@pytest.mark.parametrize("style, kept", [("chat_template", True), ("chatml", False), ("alpaca", False)])
def test_a_template_that_training_used_or_that_shows_the_same_is_kept(style, kept, tmp_path):
    folder_of("qwen", tmp_path)
    template = CHATML if style != "chatml" else CHATML.replace("Be good.", "Be bad.")
    (tmp_path / "chat_template.jinja").write_text(template)
    assert bool(carry_style(tmp_path, style)) is not kept
    assert ((tmp_path / "chat_template.jinja").read_text() == template) is kept
    plain = CHATML.partition("{% endif %}")[2]
    (tmp_path / "chat_template.jinja").write_text(plain)
    assert (carry_style(tmp_path, style) == []) is (style != "alpaca")
    stops = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.token_to_id("<|im_end|>" if style == "chatml" else "<|endoftext|>") in stops


def test_of_two_chat_templates_the_one_that_training_used_is_exported(checkpoint, tmp_path):
    base = base_of(checkpoint, "llama", tmp_path / "base")
    turns = [Turn("user", "Q"), Turn("assistant", "A"), Turn("user", "R")]
    asked = open_style("chat_template", base).exchanges(turns)
    script("convert_lit_checkpoint")(base, tmp_path / "hf")
    assert (
        text_of(asked, "</s>")
        == shown_by_transformers(tmp_path / "hf", turns)
        == "[user]Q</s>[assistant]A</s>[user]R</s>[assistant]"
    )
    assert read_templates(tmp_path / "hf") == {"default": BASE, "tool_use": "tools!", "rag": "documents!"}
    assert "chat_template" not in json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())


@pytest.mark.parametrize("style", TRAINED)
def test_llama_cpp_asks_as_the_training_did(style, checkpoint, tmp_path, capsys):
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp, as the package xllamacpp has it, is not installed")
    pytest.importorskip("gguf")
    base = base_of(checkpoint, "gemma", tmp_path / "base")
    (base / MERGED).write_text(json.dumps({"prompt_style": style, "runs": []}))
    script("convert_lit_checkpoint")(base, tmp_path / "out", format="gguf")
    assert f"ollama create tiny -f {tmp_path / 'out' / 'Modelfile'}" in capsys.readouterr().out
    (path,) = (tmp_path / "out").glob("*.gguf")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(path), 64, 1, 0
    params.use_jinja, params.warmup, params.fit_params, params.cpuparams.n_threads = True, False, False, 1
    server = xllamacpp.Server(params)
    trained = open_style(style, base)
    for turns in conversations():
        if turns[-1].role == "user":
            asked = {"messages": messages(turns)}
            answer = requests.post(f"{server.listening_address}/apply-template", json=asked, timeout=60).json()
            wanted = text_of(trained.exchanges(turns), "</s>").removeprefix("<s>")  # which llama.cpp writes itself
            assert answer["prompt"] == wanted, turns


def stripped(turns):
    return [replace(t, text=t.text.strip()) for t in turns]


def test_ollamas_template_language_shows_the_same(tmp_path):
    """By Go's own package, which Ollama executes templates with; texts that a style trims are given without edges."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed")
    asked, wanted = [], []
    for kind in KINDS:
        folder = tmp_path / kind.replace(" ", "")
        folder.mkdir()
        tokenizer = Tokenizer(folder_of(kind, folder))
        for style in (style.of(tokenizer) for style in STYLES.values()):
            for turns in conversations():
                turns = turns if style.trims == "no" else stripped(turns)
                system = turns[0].text if turns[0].role == "system" else style.default_system
                said = [{"Role": t.role, "Content": t.text} for t in turns]
                asked.append({"Template": go_of(style), "System": system, "Messages": said})
                text = text_of(style.exchanges(turns), style.eos)
                wanted.append(text.removeprefix(style.own_bos) if style.first_bos else text)  # Ollama writes that
    (tmp_path / "main.go").write_text(GO)
    done = subprocess.run(
        [go, "run", tmp_path / "main.go"], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == wanted


GO = """
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

func main() {
	var asked []struct {
		Template, System string
		Messages         []struct{ Role, Content string }
	}
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		panic(err)
	}
	shown := []string{}
	for _, a := range asked {
		var text strings.Builder
		program := template.Must(template.New("").Parse(a.Template))
		if err := program.Execute(&text, map[string]any{"System": a.System, "Messages": a.Messages}); err != nil {
			panic(err)
		}
		shown = append(shown, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(shown)
}
"""


def modelfile(folder):
    return write_modelfile(folder / "tiny-F16.gguf", folder).read_text()


def test_a_modelfile_has_what_ollama_needs_and_says_what_it_lacks(tmp_path):
    folder_of("qwen", tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert 'TEMPLATE """' not in modelfile(tmp_path) and "has no chat template" in modelfile(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    shown = replace(STYLES["chatml"].of(tokenizer), default_system="Be good.")
    assert modelfile(tmp_path) == (
        f'FROM ./tiny-F16.gguf\n\nTEMPLATE """{go_of(shown)}"""\n\nSYSTEM "Be good."\n\n'
        'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\n'
    )
    (tmp_path / "chat_template.jinja").write_text(BASE)
    assert "no words for the model's own" in modelfile(tmp_path) and 'stop "<|endoftext|>"' in modelfile(tmp_path)
    for style in STYLES.values():  # those of the styles are found again, with their system texts
        (tmp_path / "chat_template.jinja").write_text(jinja_of(style.of(tokenizer)))
        written = modelfile(tmp_path)
        assert go_of(style.of(tokenizer)) in written
        assert ("SYSTEM" in written) is bool(style.default_system) and style.default_system in written


def write_spacing_tokenizer(folder):
    """As Mistral's tokenizer.json: a space is put before the first text, unless a token stands there written out."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors

    folder_of("llama", folder)
    merges = [("\u2581", "B"), ("\u2581", "A"), ("\u2581", "W")]
    tokens = ["<unk>", *map(chr, range(32, 127)), "\n", "\u2581", *(a + b for a, b in merges)]
    backend = Backend(models.BPE({t: i for i, t in enumerate(tokens)}, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens(["<s>", "</s>"])
    bos = ("<s>", backend.token_to_id("<s>"))
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[bos])
    backend.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("style", STYLES)
def test_what_transformers_tokenizes_begins_as_the_training_did(style, tmp_path):
    from transformers import AutoTokenizer

    write_spacing_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    wanted = tokenizer.encode(open_style(style, tmp_path).exchanges(QUESTION)[0].prompt)
    carry_style(tmp_path, style)
    assert carry_style(tmp_path, style) == [f"Prompt style {style}: the chat template that goes along is that style's"]
    asked = {"add_generation_prompt": True, "return_dict": True}
    reference = AutoTokenizer.from_pretrained(tmp_path)
    assert reference.apply_chat_template(messages(QUESTION), **asked)["input_ids"] == wanted
    of_transformers = (tmp_path / "chat_template.jinja").read_text()
    carry_style(tmp_path, style, llama_cpp=True)  # which puts that space there after a token, too
    gap = STYLES[style].begins == "no"
    assert ("'<s> '" in of_transformers) is gap and "'<s> '" not in (tmp_path / "chat_template.jinja").read_text()
