"""Downloads: the real script with the real client, against a hub on loopback."""

import fcntl
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import PATIENCE, Hub, checksum

from lit_gpt.errors import UserError
from lit_gpt.families import MODELS
from lit_gpt.hub.supported import check_supported

REPO_ROOT = Path(__file__).parents[1]
REPO = "someone/tiny"
TOKEN = "hf_secretsecretsecret"
CHUNK = 10 * 2**20  # the client writes what has arrived in pieces of this many bytes
SMALL = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b'{"version": "1.0"}'}
BIG = random.Random(0).randbytes(CHUNK + 2**20)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


class Script:
    """`python scripts/download.py`, as a user without any Hugging Face settings would run it in `folder`."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder, self.endpoint = folder, hub.url
        self.env: dict[str, str] = {}

    def start(self, *arguments: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        env = clean | {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.folder / "hf"), "PYTHONPATH": str(REPO_ROOT)}
        return subprocess.Popen(
            [sys.executable, str(REPO_ROOT / "scripts" / "download.py"), *arguments],
            cwd=self.folder,
            env=env | {"HF_HUB_DISABLE_TELEMETRY": "1"} | self.env,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def fails(self, *arguments: str, code: int = 1) -> str:
        """The one line on stderr of a run that fails, without what it reports file by file."""
        result = self(*arguments)
        assert result.returncode == code, result.stderr
        assert TOKEN not in result.stdout + result.stderr
        lines = [line for line in result.stderr.splitlines() if not line.startswith("[")]
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("error: ")
        return lines[0]


@pytest.fixture
def download(tmp_path: Path, hub: Hub) -> Script:
    return Script(tmp_path, hub)


@pytest.fixture
def heeds_sigint() -> Iterator[None]:
    """What a script started in the background ignores, and so would all that it starts: Python keeps it that way."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def content(folder: Path, repo_id: str = REPO) -> dict[str, bytes]:
    """What a user finds in the checkpoint folder."""
    return {p.name: p.read_bytes() for p in (folder / "checkpoints" / repo_id).iterdir() if p.is_file()}


def part(folder: Path, name: str, whole: bytes) -> Path:
    return folder / "checkpoints" / REPO / ".download" / f"{name}.{checksum(name, whole)[:12]}.incomplete"


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.smoke
def test_fetches_safetensors_tokenizer_and_configuration_whole_and_only_once(
    hub: Hub, download: Script, tmp_path: Path
) -> None:
    wanted = SMALL | {
        "model.safetensors": random.Random(1).randbytes(300_000),
        "generation_config.json": b"{}",
        "tokenizer.model": b"\0\1\2",
        "tokenizer_config.json": b"{ }",
        "special_tokens_map.json": b"{  }",
        "added_tokens.json": b"",
        "vocab.json": b"{   }",
        "merges.txt": b"a b",
        "chat_template.jinja": b"{{ x }}",
        "additional_chat_templates/rag.jinja": b"{{ y }}",
    }
    unwanted = {
        "pytorch_model.bin": b"1",
        "pytorch_model.bin.index.json": b"1",
        "model.fp16.safetensors": b"1",
        "consolidated.safetensors": b"1",
        "consolidated.00.bin": b"1",
        "adapter_model.safetensors": b"1",
        "training_args.bin": b"1",
        "optimizer.bin": b"1",
        "tiny.gguf": b"1",
        "README.md": b"1",
        "original/tokenizer.model": b"1",
        "onnx/model.safetensors": b"1",
        "additional_chat_templates/onnx/rag.jinja": b"1",
    }
    hub.add(REPO, wanted | unwanted)

    first = download("--repo_id", REPO)
    assert first.returncode == 0, first.stderr
    (named,) = [name for name in wanted if "/" in name]
    folder = tmp_path / "checkpoints" / REPO
    assert content(tmp_path) | {named: (folder / named).read_bytes()} == wanted
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {".download", "additional_chat_templates"}
    assert not list(tmp_path.rglob("*.incomplete"))
    assert first.stdout.splitlines() == [
        f"checkpoints/{REPO} is complete (300.1 kB)",
        f"next: python scripts/convert_hf_checkpoint.py --checkpoint_dir checkpoints/{REPO}",
    ]
    assert len(first.stderr.splitlines()) == len(wanted)  # in a log file one line a file, not a bar

    hub.log.clear()
    assert download("--repo_id", REPO).returncode == 0
    assert [r.path for r in hub.log] == [f"/api/models/{REPO}"]


def test_fetches_shards_with_their_index_and_not_the_same_weights_in_one_file(
    hub: Hub, download: Script, tmp_path: Path
) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 9 for i in (1, 2)}
    wanted = SMALL | shards | {"model.safetensors.index.json": b'{"weight_map": {}}'}
    hub.add(REPO, wanted | {"model.safetensors": b"both", "pytorch_model.bin": b"1"})
    assert download("--repo_id", REPO).returncode == 0
    assert content(tmp_path) == wanted


def test_fetches_bin_where_there_is_nothing_else_and_draws_a_bar_on_a_terminal(
    hub: Hub, download: Script, tmp_path: Path
) -> None:
    shards = {f"pytorch_model-0000{i}-of-00002.bin": bytes([i]) * 9 for i in (1, 2)}
    wanted = SMALL | shards | {"pytorch_model.bin.index.json": b"{}"}
    hub.add(REPO, wanted | {"training_args.bin": b"1", "tiny.gguf": b"1"})
    terminal, ours = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # a terminal without columns has no bar
    process = download.start("--repo_id", REPO, stderr=ours)
    os.close(ours)
    assert process.wait(60) == 0
    process.communicate()
    assert content(tmp_path) == wanted
    bars = os.read(terminal, 2**16).decode()
    os.close(terminal)
    assert all(name in bars for name in shards)
    assert "100%" in bars
    assert "[1/" not in bars


def test_fetches_the_only_gguf_and_refuses_to_choose_among_several(hub: Hub, download: Script, tmp_path: Path) -> None:
    hub.add(REPO, SMALL | {"tiny.Q4_0.gguf": b"GGUF"})
    hub.add("someone/many", {"a.gguf": b"GGUF1", "b.gguf": b"GGUF2"})
    assert download("--repo_id", REPO).returncode == 0
    assert content(tmp_path) == SMALL | {"tiny.Q4_0.gguf": b"GGUF"}
    assert "2 gguf files" in (line := download.fails("--repo_id", "someone/many"))
    assert "a.gguf, b.gguf" in line


def test_tokenizer_only_leaves_the_weights_and_they_come_later(hub: Hub, download: Script, tmp_path: Path) -> None:
    hub.add(REPO, SMALL | {"model.safetensors": b"weights"})
    assert "convert" not in download("--repo_id", REPO, "--tokenizer_only", "true").stdout
    assert content(tmp_path) == SMALL
    hub.log.clear()
    assert download("--repo_id", REPO).returncode == 0
    assert [r.file for r in hub.log if r.file] == ["model.safetensors"]
    assert content(tmp_path) == SMALL | {"model.safetensors": b"weights"}


def test_a_cut_connection_is_continued_in_the_same_run_and_the_next(hub: Hub, download: Script, tmp_path: Path) -> None:
    """First cut: the client asks on by itself. Then no answer until it gives up: the next run asks on."""
    whole = random.Random(2).randbytes(2 * CHUNK + 2**20)
    hub.add(REPO, SMALL | {"model.safetensors": whole})
    hub.cuts["model.safetensors"] = [CHUNK + 7, CHUNK + 7] + [0] * 20
    line = download.fails("--repo_id", REPO)
    assert "run the same command again, it goes on where it stopped" in line
    assert hub.url in line
    arrived = part(tmp_path, "model.safetensors", whole).stat().st_size
    assert arrived in (CHUNK, 2 * CHUNK)  # a client built on `requests` gives up at the first cut
    assert content(tmp_path) == SMALL  # nothing half-written under its final name

    hub.cuts.clear()
    hub.log.clear()
    again = download("--repo_id", REPO)
    assert again.returncode == 0, again.stderr
    assert f"{arrived / 1e6:.1f} MB of it here already" in again.stderr
    assert {r.range for r in hub.asked("model.safetensors")} == {f"bytes={arrived}-"}
    assert {r.encoding for r in hub.asked("model.safetensors")} == {"identity"}  # bytes of the file, not of a zip
    assert content(tmp_path) == SMALL | {"model.safetensors": whole}


def test_a_file_that_ends_early_is_not_taken_for_whole(hub: Hub, download: Script, tmp_path: Path) -> None:
    hub.add(REPO, SMALL | {"model.safetensors": b"weights"}, announced={"model.safetensors": 100})
    assert "it ended before the file did" in download.fails("--repo_id", REPO)
    assert content(tmp_path) == SMALL


@pytest.mark.usefixtures("heeds_sigint")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_where_it_stopped_and_nobody_else_may_meanwhile(
    hub: Hub, download: Script, tmp_path: Path, how: signal.Signals
) -> None:
    hub.add(REPO, SMALL | {"model.safetensors": BIG})
    hub.stalls["model.safetensors"] = CHUNK + 9
    download.env["HF_HUB_DOWNLOAD_TIMEOUT"] = str(PATIENCE)  # else the client asks again after 10 s
    first = download.start("--repo_id", REPO)
    kept = part(tmp_path, "model.safetensors", BIG)
    wait_for(lambda: kept.exists() and kept.stat().st_size == CHUNK)
    if how is signal.SIGINT:
        assert "another process" in download.fails("--repo_id", REPO)
    first.send_signal(how)
    err = first.communicate(timeout=PATIENCE)[1]
    assert how is signal.SIGKILL or (first.returncode == 130 and err.endswith("error: interrupted\n"))
    assert content(tmp_path) == SMALL

    hub.stalls.clear()
    hub.log.clear()
    assert download("--repo_id", REPO).returncode == 0
    assert {r.range for r in hub.asked("model.safetensors")} == {f"bytes={CHUNK}-"}
    assert content(tmp_path) == SMALL | {"model.safetensors": BIG}


def test_a_damaged_part_is_thrown_away_and_not_made_a_file(hub: Hub, download: Script, tmp_path: Path) -> None:
    hub.add(REPO, {"model.safetensors": b"weights"})
    damaged = part(tmp_path, "model.safetensors", b"weights")
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"WEI")
    assert "damaged" in download.fails("--repo_id", REPO)
    assert content(tmp_path) == {}
    damaged.write_bytes(b"longer than the whole file")
    assert download("--repo_id", REPO).returncode == 0
    assert content(tmp_path) == {"model.safetensors": b"weights"}


def test_another_revision_is_fetched_even_where_sizes_agree(hub: Hub, download: Script, tmp_path: Path) -> None:
    old, new = ({"config.json": b'{"v": %d}' % i, "model.safetensors": b"weights %d" % i} for i in (1, 2))
    hub.add(REPO, new)
    hub.add(REPO, old, revision="step1")
    leftover = part(tmp_path, "model.safetensors", b"weights 0")
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"weig")
    for arguments, expected in (((), new), (("--revision", "step1"), old), ((), new)):
        assert download("--repo_id", REPO, *arguments).returncode == 0
        assert content(tmp_path) == expected
        assert not leftover.exists()
    assert "no revision 'step9'" in download.fails("--repo_id", REPO, "--revision", "step9")


def test_a_gated_repository_needs_a_token_with_access_and_storage_never_sees_it(
    hub: Hub, download: Script, tmp_path: Path
) -> None:
    gated = "meta-llama/Llama-2-7b-hf"
    hub.add(gated, SMALL | {"model.safetensors": b"weights"}, readers={TOKEN})
    line = download.fails("--repo_id", gated)
    assert f"request access at https://huggingface.co/{gated}" in line
    assert "--token or HF_TOKEN" in line
    line = download.fails("--repo_id", gated, "--token", "hf_someoneelse")
    assert "your token has no access" in line
    assert "hf_someoneelse" not in line
    assert "copy it again" in download.fails("--repo_id", gated, "--token", TOKEN + "\n" + TOKEN)

    hub.log.clear()
    assert download("--repo_id", gated, "--token", TOKEN).returncode == 0
    assert content(tmp_path, gated) == SMALL | {"model.safetensors": b"weights"}
    assert {r.token for r in hub.log if r.host in hub.url} == {TOKEN}
    assert {r.token for r in hub.log if r.host in hub.storage_url} == {None}

    download.env["HF_TOKEN"] = TOKEN
    assert download("--repo_id", gated, "--checkpoint_dir", "elsewhere").returncode == 0


def test_an_unknown_name_shows_close_matches(hub: Hub, download: Script) -> None:
    assert "openlm-research/open_llama_7b," in download.fails("--repo_id", "openlm/open_lama_7b")
    assert "EleutherAI/pythia-160m" in download.fails("--repo_id", "Pythia160m", "--token", TOKEN)
    assert "org/name" in download.fails("--repo_id", "a/b/c")


def test_a_short_known_name_is_enough(hub: Hub, download: Script, tmp_path: Path) -> None:
    hub.add("EleutherAI/pythia-14m", SMALL | {"model.safetensors": b"weights"})
    assert download("--repo_id", "pythia-14m").returncode == 0
    assert content(tmp_path, "EleutherAI/pythia-14m") == SMALL | {"model.safetensors": b"weights"}


def test_no_network_is_one_line_with_the_address(download: Script) -> None:
    with socket.socket() as closed:  # bound, so that nobody else takes the port, and not listening
        closed.bind(("127.0.0.1", 0))
        download.endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        line = download.fails("--repo_id", REPO)
    assert f"{download.endpoint} failed (Connection refused)" in line
    download.env["HF_HUB_OFFLINE"] = "1"
    assert "HF_HUB_OFFLINE" in download.fails("--repo_id", REPO)


def test_a_disk_too_small_is_said_before_anything_is_fetched(hub: Hub, download: Script, tmp_path: Path) -> None:
    hub.add(REPO, SMALL | {"model.safetensors": b"weights"}, announced={"model.safetensors": 10**18})
    line = download.fails("--repo_id", REPO)
    assert f"checkpoints/{REPO} needs 1000000000.0 GB more" in line
    assert "--checkpoint_dir" in line
    assert [r.path for r in hub.log] == [f"/api/models/{REPO}"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always full device")
def test_a_disk_that_fills_up_is_one_line_and_the_rest_is_kept(hub: Hub, download: Script, tmp_path: Path) -> None:
    hub.add(REPO, SMALL | {"model.safetensors": b"weights"})
    full = part(tmp_path, "model.safetensors", b"weights")
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")
    assert f"the disk of checkpoints/{REPO} is full" in download.fails("--repo_id", REPO)
    assert content(tmp_path) == SMALL


def test_whoever_asks_for_the_fast_transfer_gets_the_same_files(hub: Hub, download: Script, tmp_path: Path) -> None:
    hub.add(REPO, SMALL | {"model.safetensors": BIG})
    download.env["HF_XET_HIGH_PERFORMANCE"] = "1"
    result = download("--repo_id", REPO)
    assert result.returncode == 0, result.stderr
    assert content(tmp_path) == SMALL | {"model.safetensors": BIG}
    assert (tmp_path / "checkpoints" / REPO / ".cache" / "huggingface").is_dir()  # the client was let do it


def test_without_a_name_the_known_models_are_listed(download: Script) -> None:
    result = download()
    assert result.returncode == 0
    assert result.stdout.splitlines() == [fields["hf_repo"] for fields in MODELS.values()]


LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128}
LLAMA |= {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320, "max_position_embeddings": 64}
LLAMA |= {"rms_norm_eps": 1e-6, "num_key_value_heads": 4}
PAGE = "docs/add_a_family.md"


def refused(config: dict, base: str | list[str] | None, tmp_path: Path) -> str:
    """What is said of a model with this config.json."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        check_supported(tmp_path / "config.json", REPO, [base] if isinstance(base, str) else base or [])
    return str(caught.value)


@pytest.mark.parametrize(
    "config, base, parts",
    [
        ({"model_type": "mystery"}, None, ["mystery is not an architecture", PAGE]),
        (LLAMA | {"attention_sinks": 4}, None, ["attention_sinks=4", PAGE]),
        (LLAMA | {"hidden_act": "relu"}, None, ["hidden_act='relu'", PAGE]),
        (LLAMA | {"quantization_config": {"quant_method": "hqq", "nbits": 4}}, ["a/x", "a/y"], ["(HQQ", "a/x or a/y"]),
        (LLAMA | {"quantization_config": {"quant_method": "quanto"}}, None, ["(Quanto)", "the 16-bit model"]),
        (LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 2}}, None, ["(GPTQ in 2 bits)"]),
        (LLAMA | {"quantization": {"group_size": 64, "bits": 8}}, None, ["(MLX in 8 bits)"]),
    ],
)
def test_what_cannot_be_converted_is_named(
    config: dict, base: str | list[str] | None, parts: list[str], tmp_path: Path
) -> None:
    line = refused(config, base, tmp_path)
    assert all(part in line for part in (*parts, REPO, "weights were not downloaded")), line


def test_what_cannot_be_converted_is_refused_before_its_weights_are_fetched(hub: Hub, download: Script) -> None:
    gptq = LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 3}}
    mystery = {"architectures": ["MysteryForCausalLM"]}
    for config, parts in (
        (mystery, ["MysteryForCausalLM is not an architecture", PAGE]),
        (gptq, ["(GPTQ in 3 bits)", "meta-llama/Llama-2-7b-hf"]),
    ):
        files = SMALL | {"config.json": json.dumps(config).encode(), "model.safetensors": BIG}
        hub.add(REPO, files, base_model="meta-llama/Llama-2-7b-hf")
        line = download.fails("--repo_id", REPO)
        assert all(part in line for part in (*parts, REPO, "weights were not downloaded")), line
        assert {r.file for r in hub.log if r.file} == {"config.json"}


def test_what_can_be_converted_is_fetched_and_so_is_anything_that_is_asked_for(
    hub: Hub, download: Script, tmp_path: Path
) -> None:
    weights = {"model.safetensors": b"weights"}
    four_bits = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    hub.add(REPO, SMALL | weights | {"config.json": json.dumps(LLAMA | four_bits).encode()})
    assert download("--repo_id", REPO).returncode == 0
    other = SMALL | weights | {"config.json": json.dumps({"architectures": ["MysteryForCausalLM"]}).encode()}
    hub.add("someone/mystery", other)
    assert download("--repo_id", "someone/mystery", "--tokenizer_only", "true").returncode == 0
    assert download("--repo_id", "someone/mystery", "--any_model", "true").returncode == 0
    assert content(tmp_path, "someone/mystery") == other
    hub.log.clear()
    assert download("--repo_id", "someone/mystery").returncode == 0  # all of it is there
    assert not [r.file for r in hub.log if r.file]
