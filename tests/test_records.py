"""What may stand in JSON and YAML is read, and the rest is refused by its place: depth, size, numbers, types, sizes."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import OF_CLASSES, tiny_hf
from damage import LONGEST_MESSAGE, outcome_of
from script_processes import ROOT
from tiny import TINY

from lit_gpt.checkpoints.configs import read_config
from lit_gpt.checkpoints.sizes import require_weights_for
from lit_gpt.cli.flags import flags_of
from lit_gpt.cli.words import read as read_words
from lit_gpt.config import Config
from lit_gpt.convert.configs import config_from_hf
from lit_gpt.convert.peft.settings import read_settings
from lit_gpt.errors import UserError, shown
from lit_gpt.files import Spec
from lit_gpt.records import MAX_BYTES, fits, read_object, read_yaml
from lit_gpt.report.metrics import read_metrics
from lit_gpt.training.run.monitor import Monitor

REFUSED = {
    "deep": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    "a little too deep": ('{"a": ' * 101 + "1" + "}" * 101, "nested too deeply"),
    "NaN": ('{"a": NaN}', "NaN is no number"),
    "infinite": ('{"a": -Infinity}', "-Infinity is no number"),
    "1e400": ('{"a": 1e400}', "'1e400' is too large"),
    "many digits": ('{"a": ' + "9" * 5_000 + "}", "not valid JSON"),
    "half a character": ('{"a": "\\ud800"}', r"it has '\\ud800', half of a character"),
    "bytes": (b'{"a": "\xff"}', "can't decode byte 0xff"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
    "no object": ("[1, 2]", r"holds no JSON object but a list, \[1, 2\]"),
    "too large": (b" " * (MAX_BYTES + 1), f"larger than {MAX_BYTES:,} bytes"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_json_that_is_refused_is_named_by_its_file_and_place(what, tmp_path):
    text, message = REFUSED[what]
    path = tmp_path / "some.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"^{re.escape(str(path))} .*{message}.*; get it again$"):
        read_object(path)


def test_json_as_people_have_it_is_read(tmp_path):
    path = tmp_path / "some.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1, "a": 2, "b": "\\ud83d\\ude00", "c": 1000000000000000019884624838656}')
    assert read_object(path) == {"a": 2, "b": "\U0001f600", "c": 1000000000000000019884624838656}
    path.write_text('{"best": Infinity}')
    assert read_object(path, finite=False) == {"best": float("inf")}, "our own records may hold the loss that diverged"


@pytest.mark.parametrize("whole", ["[],", "{},", "1,"])
def test_the_largest_json_takes_bounded_memory_and_time(whole, tmp_path):
    path = tmp_path / "large.json"
    path.write_text('{"a": [' + whole * ((MAX_BYTES - 20) // len(whole)) + "0]}")
    outcome = outcome_of(lambda: read_object(path), path.stat().st_size, max_seconds=60)
    assert outcome.kind == "read", outcome


def test_types_are_those_of_annotations():
    assert fits(int, 3) and fits(float, 3) and fits(float, 0.5) and fits(str | None, None) and fits(bool, True)
    assert fits(dict[str, list[int]], {"a": [1]}) and fits(tuple[str, ...], ["a"])
    for kind, value in (
        (int, True), (int, 1.0), (int, 2**70), (int, "1"), (float, False), (float, float("nan")), (float, 2**70),
        (float, 2**2_000), (bool, 1), (str, None), (list[int], [1, "2"]), (list[int], {}),
        (dict[str, int], {"a": None}),
    ):  # fmt: skip
        assert not fits(kind, value), (kind, value)


BOMBS = {
    "aliases": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
    "merges": "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)),
    "itself": "a: &a [*a]\n",
    "deep": "a: " + "[" * 30_000,
    "long": "a: " + "x" * 10**6,
    "half a character": 'a: "\\ud800"\n',
    "no such character": 'a: "\\UFFFFFFFF"\n',
    "date": "a: 2001-99-99\n",
}


@pytest.mark.parametrize("what", BOMBS)
def test_yaml_that_stands_for_more_than_is_written_is_refused_at_once(what, tmp_path):
    def main(names: list[str] | None = None, a: str = "", **more: str) -> None:
        """Has few flags."""

    path = tmp_path / "some.yaml"
    path.write_text(BOMBS[what])
    outcome = outcome_of(lambda: read_yaml(path), path.stat().st_size)
    assert outcome.kind == "refused" and str(path) in outcome.text, outcome
    outcome = outcome_of(lambda: read_words(["--config", str(path)], flags_of(main)), path.stat().st_size)
    assert outcome.kind == "refused" or what == "date", outcome
    outcome = outcome_of(lambda: read_words(["--names", "[" + BOMBS["aliases"] + "]"], flags_of(main)))
    assert outcome.kind == "refused", outcome


def test_a_message_is_one_line_of_bounded_length_that_keeps_its_end():
    error = UserError("a.json: x=" + "\x1b[2J\n" * 10_000 + "; get it again")
    assert len(str(error)) <= LONGEST_MESSAGE and str(error).isprintable()
    assert str(error).startswith("a.json: x=") and str(error).endswith("; get it again")
    assert len(shown({"a": ["x" * 10**6]})) == 80 and "too large" in shown(10**5_000)


@pytest.mark.parametrize(
    "name, value",
    [
        ("n_layer", 2**40), ("n_layer", 0), ("n_layer", True), ("n_head", -4), ("n_embd", 2**40), ("head_size", 2**40),
        ("padded_vocab_size", 2**40), ("vocab_size", 0), ("n_expert", 10**6), ("norm_eps", -1.0), ("block_size", 0),
        ("rope_base", 0.0), ("rope_base", 1.0), ("rope_condense_ratio", 0.0), ("rotary_percentage", 2.0),
        ("sliding_layers", [-1]), ("sliding_layers", ["0"]), ("sliding_layers", [0] * 10**5), ("norm", "batch"),
        ("rope_scaling", {}), ("rope_scaling", {"type": ["yarn"]}), ("rope_scaling", {"type": "yarn", "factor": 0}),
        ("rope_scaling", {"type": "yarn", "factor": "4"}), ("rope_scaling", {"type": "llama3", "factor": 8.0}),
        ("rope_scaling", {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4,
                          "original_max_position_embeddings": 8}),
    ],
)  # fmt: skip
def test_a_configuration_of_no_model_is_refused_before_anything_is_made(name, value, tmp_path):
    path = tmp_path / "lit_config.json"
    path.write_text(json.dumps(asdict(TINY) | {name: value}))
    with pytest.raises(UserError, match=f"{name}.*; run scripts/convert_hf_checkpoint.py again$"):
        Config.from_json(path)
    with pytest.raises(UserError, match=name):
        read_config(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_layers_and_experts_are_compared_with_the_tensors_that_are_there(kind):
    model = tiny_hf(kind)
    hf = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    specs = {name: Spec(tuple(x.shape), x.dtype) for name, x in model.state_dict().items()}
    key = "num_hidden_layers" if kind == "llama" else "num_local_experts"
    config = config_from_hf(hf | {key: 1_024}, "tiny", "config.json")
    with pytest.raises(UserError, match=r"the configuration says (1,024 layers|2,048 experts in all layers)"):
        require_weights_for(config, specs, Path("tiny"))


@pytest.mark.parametrize("kind", OF_CLASSES)
def test_nulls_and_types_that_a_family_computes_with_are_no_obstacle_to_a_message(kind):
    model = tiny_hf(kind)
    hf = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    for key in hf:
        for value in (None, "x", [], {"a": 1}, True, 2**70, -1, [["a"]]):
            try:
                config_from_hf(hf | {key: value}, "tiny", "config.json")
            except UserError as e:
                assert "config.json" in str(e) or "tiny" in str(e)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|b)*c", ".*.*.*.*.*x", "(", "x" * 2_000, "a{1,9}(b{2}){3}"])
def test_a_pattern_that_may_take_forever_is_refused(pattern):
    with pytest.raises(UserError, match=r"may take forever|is no regex"):
        read_settings({"peft_type": "LORA", "rank_pattern": {pattern: 4}})


def test_patterns_as_adapters_have_them_are_read():
    patterns = {r"model\.layers\.(1|2)\.mlp\.\w+_proj": 4, "q_proj": 16, r".*\.\d+\.self_attn\.k_proj": 2}
    scaling = read_settings({"peft_type": "LORA", "r": 8, "rank_pattern": patterns})
    ranks = [scaling.rank(f"model.layers.1.{x}_proj") for x in ("mlp.up", "self_attn.q", "self_attn.k", "self_attn.v")]
    assert ranks == [4, 16, 2, 8]


def test_damaged_lines_of_metrics_are_left_out_and_the_whole_ones_stay(tmp_path):
    head = "iter,step,samples,seconds,loss,val_loss,learning_rate,tokens_per_sec,n_tokens,n_targets,colour"
    good = [f"{i},{i},{4 * i},{i}.0,2.5,,0.1,100,64,32,red" for i in (1, 2)]
    bad = ["", "1,2", "x" * 10**6, "1,1,4,1e400,2.5,,0.1,100,64,32,red", "1,1,4,nan,2.5,,0.1,100,64,32,red", "\0" * 50]
    bad += ["1,1,-4,1,2.5,,0.1,100,64,32,red", '"1,1,4,1,2.5', "3,3,12,3.0,nan,,0.1,100,64,32"]
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join([head, *bad, *good, "3,3,12,3.0,nan,,0.1,100,64,32,red", "4,4,1"]))
    metrics = read_metrics(path)
    assert list(metrics.columns["iter"]) == [1, 2, 3] and metrics.column("val_loss") == []
    assert [step for step, _ in metrics.by_step("loss", "n_targets")] == [1, 2, 3], "a loss that is NaN is a line"
    monitor = Monitor(tmp_path, 8, 1, goes_on=True)
    monitor.restore({"iter": 2, "samples": 8, "losses": [], "path": "elsewhere", "seconds": 3.0})
    monitor.close()
    assert monitor.metrics.path == path and monitor.samples == 8
    lines = path.read_text().splitlines()
    assert lines[0].startswith("iter,step") and [line[:4] for line in lines[1:]] == ["1,1,", "2,2,"]
    path.write_text("")
    assert len(read_metrics(path)) == 0


def test_no_reader_of_the_library_goes_around_this_one():
    """Those of rows and columns have limits of their own."""
    own = {"lit_gpt/records/json_text.py", "lit_gpt/records/yaml_text.py", "lit_gpt/convert/readers.py"}
    own |= {f"lit_gpt/data/prepare/{name}.py" for name in ("entries", "values", "arrow")}
    own |= {"lit_gpt/convert/gguf/tokens.py", "lit_gpt/files/headers.py"}  # headers, within bounds that are checked
    own |= {"lit_gpt/training/run/resume.py", "lit_gpt/checkpoints/origin.py"}  # of what this process wrote
    own |= {"lit_gpt/foreign/remote.py", "lit_gpt/files/writers.py"}  # what processes of ours say to each other
    own |= {"lit_gpt/grading/host.py", "lit_gpt/grading/program.py"}
    found = {
        str(path.relative_to(ROOT))
        for folder in ("lit_gpt", "scripts", "finetune", "generate", "eval")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"\bjson\.loads?\(|\byaml\.(safe_)?load\(|csv\.DictReader", path.read_text(encoding="utf-8"))
    }
    assert found <= own, f"{found - own}: read with lit_gpt.records"
