"""Sends a server thousands of requests, of which many are given up at random: nothing may be lost, and no memory grow.

python benchmarks/serve_load.py [--requests 10000] [--clients 64] [--seed 0]

Serves a tiny model with random weights in a process of its own, on the loopback interface. Clients send texts and
conversations, whole and as streams, to be continued and to be scored; a third of them hang up after a random time. A
request is lost if its answer is not what the same request gets when it is sent alone, or if it gets none at all.
Memory is the server process's, after a tenth of the requests and at the end. Exits with 1 if something was lost, if a
place was not freed, or if memory grew by more than a tenth. Needs the packages of the tests. Nothing is downloaded.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parent.parent
sys.path[1:1] = [str(ROOT), str(ROOT / "tests")]  # for the tests' tiny checkpoint

import httpx  # noqa: E402
import psutil  # noqa: E402
from clients_parts.server import serving  # noqa: E402

_KINDS = 40
"""Different requests that are sent; each is sent alone first."""
_GROWTH = 1.1
_PATIENCE = 120


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--requests", type=int, default=10_000)
    arguments.add_argument("--clients", type=int, default=64, help="requests that are on their way at once")
    arguments.add_argument("--seed", type=int, default=0)
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = _checkpoint(Path(folder) / "tiny")
        with serving(checkpoint) as (url, pid):
            outcome = asyncio.run(_load(url, psutil.Process(pid), args))
    return outcome


def _checkpoint(folder: Path) -> Path:
    """Makes a tiny checkpoint with random weights and a chat template, and returns its folder."""
    from conftest import tiny_hf, write_tokenizer
    from serving import TEMPLATE

    from lit_gpt.args.folders import CONFIG, WEIGHTS
    from lit_gpt.convert.configs import config_from_hf
    from lit_gpt.convert.names import from_hf
    from lit_gpt.convert.readers import open_source
    from lit_gpt.files import save_state

    folder.mkdir()
    tiny_hf("llama-gqa").save_pretrained(folder)
    write_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    source = open_source(folder)
    config = config_from_hf(source.hf_config, "tiny", "config.json")
    save_state(from_hf(config, source.names, source.get), folder / WEIGHTS)
    config.to_json(folder / CONFIG)
    return folder


def _kinds(draw: random.Random) -> list[tuple[str, dict[str, Any]]]:
    """Returns different requests, as (path, body); all of them always have the same answer."""
    found: list[tuple[str, dict[str, Any]]] = []
    for i in range(_KINDS):
        ids = [draw.randrange(256) for _ in range(draw.randrange(1, 60))]
        common = {
            "max_tokens": draw.randrange(1, 40),
            "temperature": draw.choice((0, 1)),
            "seed": i,
            "ignore_eos": True,
        }
        words = " ".join(draw.choice(("the", "hand", "thing", "in", "and")) for _ in range(draw.randrange(1, 20)))
        found.append(
            draw.choice(
                [
                    ("/v1/completions", {"prompt": ids, **common}),
                    ("/v1/completions", {"prompt": [words, words + " the"], "n": 2, **common}),
                    ("/v1/completions", {"prompt": ids, "echo": True, "logprobs": 1, **common, "max_tokens": 0}),
                    ("/v1/chat/completions", {"messages": [{"role": "user", "content": words}], **common}),
                    ("/process", {"prompt": words, "temperature": 1e-7, "max_new_tokens": common["max_tokens"]}),
                ]
            )
        )
    return found


async def _load(url: str, process: psutil.Process, args: argparse.Namespace) -> int:
    """Sends all requests, prints what came of them, and returns the exit code."""
    draw = random.Random(args.seed)
    kinds = _kinds(draw)
    limits = httpx.Limits(max_connections=args.clients)
    async with httpx.AsyncClient(base_url=url, timeout=_PATIENCE, limits=limits) as client:
        want = [_texts((await client.post(path, json=body)).json()) for path, body in kinds]
        outcomes: Counter[str] = Counter()
        started, memory = time.perf_counter(), {}
        for name, n in (("after a tenth", args.requests // 10), ("at the end", args.requests - args.requests // 10)):
            left = iter([draw.randrange(_KINDS) for _ in range(n)])

            async def work(left=left) -> None:
                for i in left:
                    outcomes[await _one(client, *kinds[i], want=want[i], draw=draw)] += 1

            await asyncio.gather(*(work() for _ in range(args.clients)))
            memory[name] = process.memory_info().rss / 1e6
        seconds = time.perf_counter() - started
        figures = await _figures(client)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "fastapi", "uvicorn"))
    print(f"Python {platform.python_version()}, {packages}; {os.cpu_count()} cores, seed {args.seed}")
    speed = f"{args.requests / seconds:.0f} a second"
    print(f"{args.requests:,} requests of {args.clients} clients in {seconds:.0f} s: {speed}")
    print("; ".join(f"{name}: {n:,}" for name, n in sorted(outcomes.items())))
    print("; ".join(f"memory {name}: {mb:.0f} MB" for name, mb in memory.items()))
    print("; ".join(f"{name}: {figures[f'lit_gpt_{name}']:.0f}" for name in ("admitted", "running", "waiting")))
    lost = sum(n for name, n in outcomes.items() if name not in ("answered", "given up"))
    held = figures["lit_gpt_admitted"] + figures["lit_gpt_running"] + figures["lit_gpt_waiting"]
    return int(bool(lost or held or memory["at the end"] > _GROWTH * memory["after a tenth"]))


async def _one(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], *, want: list[str], draw: random.Random
) -> str:
    """Sends a request, and returns what came of it in words."""
    streams = path != "/process" and draw.random() < 0.4
    patience = draw.random() * 0.3 if draw.random() < 1 / 3 else _PATIENCE
    try:
        found = await asyncio.wait_for(_answer(client, path, body | {"stream": streams}), patience)
    except (asyncio.TimeoutError, TimeoutError):
        return "given up" if patience < _PATIENCE else "no answer"
    except (httpx.HTTPError, ValueError, KeyError) as e:
        return f"failed ({type(e).__name__}: {_cause(e)!r})"
    return "answered" if found == want else "another answer"


def _cause(e: BaseException) -> BaseException:
    """Returns the exception that an exception comes from in the end."""
    while (before := e.__cause__ or e.__context__) is not None:
        e = before
    return e


async def _answer(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[str]:
    """Returns the texts that a request gets, read whole or as a stream."""
    if not body["stream"]:
        response = await client.post(path, json=body)
        response.raise_for_status()
        return _texts(response.json())
    texts: dict[int, str] = {}
    async with client.stream("POST", path, json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    new = choice["text"] if "text" in choice else choice["delta"].get("content", "")
                    texts[choice["index"]] = texts.get(choice["index"], "") + new
    return [texts[i] for i in sorted(texts)]


def _texts(answer: dict[str, Any]) -> list[str]:
    """Returns the texts of a whole answer."""
    if "choices" not in answer:
        return [answer["text"]]
    return [c["text"] if "text" in c else c["message"]["content"] for c in answer["choices"]]


async def _figures(client: httpx.AsyncClient) -> dict[str, float]:
    """Returns the server's own figures, once nothing runs any more, or after some seconds."""
    figures: dict[str, float] = {}
    for _ in range(100):
        lines = (await client.get("/metrics")).text.splitlines()
        figures = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}
        if figures["lit_gpt_admitted"] == 0:
            break
        await asyncio.sleep(0.1)
    return figures


if __name__ == "__main__":
    sys.exit(main())
