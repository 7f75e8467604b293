"""The parts of the check: steps without Docker, a server that does not get ready, HELM's requests, load and time."""

import json
import sys
import time

import httpx
import pytest
from serving import loaded_from, serving

from lit_gpt.args.submission import CheckArgs
from lit_gpt.errors import UserError
from lit_gpt.planning.devices import named
from lit_gpt.submission.check import docker
from lit_gpt.submission.check.dockerfile import read_steps, start_command
from lit_gpt.submission.check.helm import PROMPTS, replay
from lit_gpt.submission.check.load import ENTRIES, Load, evaluation_seconds, measure, planned_seconds, require_memory
from lit_gpt.submission.check.run import evaluation
from lit_gpt.submission.check.server import started, wait
from lit_gpt.submission.check.steps import carried_out
from lit_gpt.submission.check.words import commands_of


@pytest.fixture
def image(tmp_path):
    """A folder with a Dockerfile of its own, whose steps are carried out."""
    folder = tmp_path / "context"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a.txt").write_text("a")
    (folder / "b.txt").write_text("b")
    (folder / "say.py").write_text(
        "import os\nprint('said', os.environ['NAME'])\nopen('made.txt', 'w').write('made')\n"
    )

    def made(*lines):
        (folder / "Dockerfile").write_text("\n".join(("FROM some:1", *lines)) + "\n")
        return carried_out(folder / "Dockerfile", base_dir=None, contents=None, fetch=False)

    return made


def test_steps_do_to_a_folder_what_docker_does_to_an_image(image):
    steps = ("ENV NAME=x OTHER='two words'", "WORKDIR /app", "WORKDIR inner", "COPY inner kept", "COPY b.txt c.txt")
    steps += ("COPY b.txt say.py ./", 'COPY ["b.txt", "/top.txt"]', "RUN python say.py && rm -rf c.txt gone")
    with image(*steps) as built:
        app = built.root / "app" / "inner"
        names = {p.relative_to(built.root).as_posix() for p in built.root.rglob("*") if p.is_file()}
        wanted = {"kept/a.txt", "b.txt", "say.py", "made.txt"}
        assert names == {f"app/inner/{name}" for name in wanted} | {"top.txt"}
        assert built.env == {"NAME": "x", "OTHER": "two words"} and (app / "made.txt").read_text() == "made"
        assert built.done == len(steps) + 1  # two in one RUN
    assert not built.root.exists()


def test_what_could_change_this_machine_is_not_carried_out_and_is_told(image, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    steps = (
        f"RUN rm {mine}",
        f"RUN python say.py; rm {mine}",
        f"RUN python {mine}",
        f"RUN python say.py {mine}",
        "RUN python say.py ../../mine.txt",
        "RUN rm -rf .",
        "RUN apt-get install x",
        "USER me",
    )
    with image("ENV NAME=x", "COPY say.py ./", *steps) as built:
        assert mine.read_text() == "mine" and not list(built.root.rglob("made.txt"))
        told = [line.partition(": ")[0].removesuffix("...") for line in built.left_out[1:]]
        assert len(told) == len(steps) and all(step.startswith(line) for step, line in zip(steps, told, strict=True))


def test_a_step_that_fails_ends_the_build_with_what_it_said(image):
    with (
        pytest.raises(UserError, match=r"line 3: RUN python say.py failed: KeyError: 'NAME'"),
        image("COPY say.py ./", "RUN python say.py"),
    ):
        pass


APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    {say}
    await send({{"type": "http.response.start", "status": {status}, "headers": []}})
    await send({{"type": "http.response.body", "body": {body!r}}})
"""


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("raise RuntimeError('no model')", "it said: RuntimeError: no model"),
        (APP.format(say="", status=500, body=b"out of order"), "answered with 500: out of order"),
        (APP.format(say="", status=503, body=b"later"), "did not answer within 0.03 minutes (503: later)"),
        (APP.format(say="", status=200, body=b"{}"), "text is None, and HELM reads it"),
        (APP.format(say="", status=200, body=b"hello"), "what is no JSON"),
    ],
    ids=["ends", "fails", "is late", "says nothing", "says no JSON"],
)
def test_a_server_that_does_not_get_ready_is_told_with_what_it_said(image, tmp_path, app, said):
    (tmp_path / "context" / "main.py").write_text(app)
    with image("COPY main.py ./") as built:
        command = ["uvicorn", "main:app", "--host", "0.0.0.0", "--port", "80"]
        began = time.monotonic()
        with started(built, command) as server, pytest.raises(UserError) as e:
            wait(server, 0.03 if "late" in said or "503" in said else 0.5)
        assert said in str(e.value) and time.monotonic() - began < 40
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url)


@pytest.fixture(scope="module")
def ask(checkpoint):
    """Posts to a real server of ours."""
    with serving(loaded_from(checkpoint)) as client:
        yield lambda path, body: client.post(path, json=body).json()


def test_helms_requests_are_answered_by_our_server(ask):
    sent = []

    def noted(path, body):
        sent.append((path, body))
        return ask(path, body)

    assert replay(noted) == len(sent)
    processed = [body for path, body in sent if path == "/process" and len(body) > 1]
    assert all(len(body) == 8 for body in processed)
    assert {path for path, _ in sent} == {"/process", "/tokenize", "/decode"}


WRONG = {
    "no log-probability": ("/process", lambda x: x.pop("logprob"), "logprob is None"),
    "a sum that is none": ("/process", lambda x: x.update(logprob=x["logprob"] - 1), "adds up to"),
    "an infinite log-probability": ("/process", lambda x: x["tokens"][-1].update(logprob=float("-inf")), "no token"),
    "text after the stop": ("/process", lambda x: x.update(text="a\n\nb\n"), "goes on after the stop string"),
    "no echo": ("/process", lambda x: x.update(text=""), "was to echo the prompt"),
    "texts for tokens": ("/tokenize", lambda x: x.update(tokens=["a"]), "a list of numbers"),
    "cut without being asked": ("/tokenize", lambda x: x.update(tokens=x["tokens"][:2048]), "although truncation is"),
    "no decoded text": ("/decode", lambda x: x.pop("text"), "/decode has no text"),
    "more text than tokens": ("/decode", lambda x: x.update(text=x["text"] + " the hand" * 9), "tokenized into"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_answer_that_helm_would_stumble_over_is_named(ask, kind):
    wrong_path, damage, said = WRONG[kind]

    def damaged(path, body):
        found = ask(path, body)
        if path == wrong_path:
            damage(found)
        return found

    with pytest.raises(UserError) as e:
        replay(damaged)
    assert said in str(e.value)


def test_the_load_has_four_at_once_and_the_evaluation_is_counted_by_kind(ask):
    loads = measure(ask, 4)
    assert [load.kind for load in loads] == list(PROMPTS) == list(ENTRIES)
    assert all(load.seconds > 0 and load.prompt_tokens > 20 for load in loads)
    assert next(load for load in loads if load.kind == "arithmetic").new_tokens > 1
    two = [Load("multiple choice", 2.0, 2.0, 100, 1), Load("summary", 10.0, 10.0, 100, 1)]
    assert evaluation_seconds(two, 20) == 20 * (2.0 * (17 * 5 + 2) + 10.0)


def test_a_device_that_is_too_small_or_too_slow_is_told():
    model = {"parameters": 13_000_000_000, "kv_bytes_per_token": 819_200, "serve_quantize": None}
    with pytest.raises(UserError, match=r"about 3\d\.\d GiB, and rtx4090 has 2\d\.\d; .*--serve_quantize"):
        require_memory(model, named("rtx4090"))
    assert "(estimate)" in require_memory(model | {"serve_quantize": "bnb.nf4"}, named("rtx4090"))
    slow = [Load(kind, 1.0, 1.0, 1_000, 100.0) for kind in PROMPTS]
    a, b = (planned_seconds(slow, 20, model, named(name)) for name in ("a100-40gb", "rtx4090"))
    assert 0 < a < b
    assert planned_seconds(slow, 20, model, named("24gb")) is None


def test_an_evaluation_that_takes_too_long_fails_on_the_device_that_is_planned():
    loads = [Load(kind, 4.0, 4.0, 1_000, 100.0) for kind in PROMPTS]
    model = {"parameters": 7_000_000_000, "kv_bytes_per_token": 524_288, "serve_quantize": None}
    with pytest.raises(UserError, match=r"1,960 requests \(20 instances an entry\) take 2.2 h .*, and 2 h are allowed"):
        evaluation(loads, model, CheckArgs())
    assert "take 2.2 h at this machine's pace, and about 1.3 h on" in evaluation(
        loads, model, CheckArgs(device="a100-40gb")
    )
    with pytest.raises(UserError, match=r"on a100-40gb \(estimate\), and 0.01 h are allowed"):
        evaluation(loads, model, CheckArgs(device="a100-40gb", eval_hours=0.01))


DOCKER = """#!{python}
import json, os, subprocess, sys
from pathlib import Path
log = Path(os.environ["LOG"])
with log.open("a") as f:
    f.write(json.dumps(sys.argv[1:]) + "\\n")
what = sys.argv[1]
if what == "info" and os.environ.get("DOWN"):
    sys.exit("Cannot connect to the Docker daemon")
if what == "build" and os.environ.get("BROKEN"):
    sys.exit("ERROR: failed to solve: some:1 not found")
if what == "inspect":
    print("true")
if what == "stats":
    print("1.5GiB / 31GiB")
"""


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """The commands that a program in docker's place was given."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(DOCKER.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    return lambda: [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]


def test_docker_is_used_where_it_runs_and_left_alone_where_it_does_not(commands, monkeypatch, tmp_path):
    assert docker.builder_of("auto") == ("docker", "docker")
    docker.build("docker", tmp_path, "Dockerfile", "tag")
    with docker.container("docker", "tag") as server:
        assert server.ended() is None and server.memory() == 1.5 * 2**30
    ran = commands()
    assert ran[1] == ["build", "-f", str(tmp_path / "Dockerfile"), "-t", "tag", str(tmp_path)]
    port = server.url.rpartition(":")[2]
    assert ran[2] == ["run", "-d", "-p", f"127.0.0.1:{port}:80", "--name", "tag", "tag"]
    assert ran[-1] == ["rm", "-f", "tag"]
    monkeypatch.setenv("BROKEN", "1")
    with pytest.raises(UserError, match=r"docker does not build Dockerfile: ERROR: failed to solve: some:1 not found"):
        docker.build("docker", tmp_path, "Dockerfile", "tag")
    monkeypatch.setenv("DOWN", "1")
    assert docker.builder_of("auto") == (None, "docker is installed, but does not answer, and podman is not installed")
    with pytest.raises(UserError, match="--builder docker: docker is installed, but does not answer"):
        docker.builder_of("docker")


def test_a_start_command_is_read_in_every_form(tmp_path):
    path = tmp_path / "Dockerfile"
    words = ["uvicorn", "main:app", "--host", "0.0.0.0", "--port", "80"]
    for lines in (
        f"CMD {json.dumps(words)}",
        f"CMD {' '.join(words)}",
        f'ENTRYPOINT ["uvicorn", "main:app"]\nCMD {json.dumps(words[2:])}',
    ):
        path.write_text(f"# a comment\nFROM some:1\n{lines}\n")
        assert start_command(path, read_steps(path)) == words
    path.write_text("FROM some:1\n")
    with pytest.raises(UserError, match="has no CMD"):
        start_command(path, read_steps(path))


def test_commands_of_a_script_are_found_over_several_lines():
    first = 'python a/b.py \\\n    --x 1 \\\n    --max_time "$max_time"\n'
    text = f'set -e\n{first}echo python c.py\n  python3 d.py --y "two words"\n'
    found = list(commands_of(text))
    assert found == [["a/b.py", "--x", "1", "--max_time", "01:00:00"], ["d.py", "--y", "two words"]]
