"""Records what HELM asks and how it scores, in tests/helm_recorded.json: `.venv-helm/bin/python tests/record_helm.py`.

The real helm-run asks a server that stands for a model. Its metric of summaries needs packages and models that cannot
be installed beside it, so that scenario is asked only, and the metric's own ROUGE scores what would have been written.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

from helm_data import ENTRIES, Words, prompt_hash, write_helm_data, written

METRICS = (
    *("exact_match", "quasi_exact_match", "prefix_exact_match", "quasi_prefix_exact_match", "exact_match_indicator"),
    *("final_number_exact_match", "rouge_1", "rouge_2", "rouge_l", "bbq_accuracy", "bbq_metric_ambiguous_bias"),
    *("bbq_metric_unambiguous_bias", "num_instances"),
)


class Model(BaseHTTPRequestHandler):
    """HELM's endpoints, by a tokenizer of words and made-up answers."""

    words, lock = Words(), threading.Lock()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            answer = {"request_time": 0.0} | getattr(self, self.path.strip("/"))(body)
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def process(self, body):
        text = written(body["prompt"], body["max_new_tokens"])
        return {"text": text, "logprob": -1.0, "tokens": [{"text": text, "logprob": -1.0}]}

    def tokenize(self, body):
        ids = self.words.encode(body["text"])
        return {"tokens": ids[: body["max_length"]] if body["truncation"] else ids}

    def decode(self, body):
        return {"text": self.words.decode(body["tokens"])}

    def log_message(self, *args):
        """Says nothing."""


def run(entries, folder, address, *flags):
    """Runs HELM on entries, and yields each with the folder of its run."""
    command = [str(Path(sys.executable).with_name("helm-run")), "--suite", "v1", "--max-eval-instances", "1", *flags]
    command += ["--run-entries"]
    for entry, n in entries.items():
        comma = "" if entry.endswith(":") else ","
        command += [f"{entry}{comma}model=neurips/local,max_eval_instances={n}"]
    env = os.environ | {"HELM_HTTP_MODEL_BASE_URL": address, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-3000:]}")
    for entry in entries:
        (made,) = (folder / "benchmark_output" / "runs" / "v1").glob(f"{entry.partition(',')[0]}*")
        yield entry, made


def asked(folder):
    """Returns what was asked in a run, with the answers."""
    found = []
    for state in json.loads((folder / "scenario_state.json").read_text())["request_states"]:
        request, instance = state["request"], state["instance"]
        found.append(
            {
                "id": instance["id"],
                "perturbation": instance.get("perturbation", {}).get("name"),
                "hash": prompt_hash(request["prompt"]),
                "text": written(request["prompt"], request["max_tokens"]),
                "max_tokens": request["max_tokens"],
                "temperature": request["temperature"],
                "stop": request["stop_sequences"],
                "prompt": request["prompt"],
                "answers": [r["output"]["text"] for r in instance["references"]],
                "split": instance["split"],
            }
        )
    return found


def scores(folder):
    """Returns (metric, split, perturbation, computed_on, mean) of the scores that a run has."""
    found = []
    for stat in json.loads((folder / "stats.json").read_text()):
        name = stat["name"]
        by = name.get("perturbation") or {}
        if name["name"] in METRICS and "mean" in stat:
            found.append([name["name"], name["split"], by.get("name"), by.get("computed_on", ""), stat["mean"]])
    return found


def rouge(states):
    """Returns the means of HELM's ROUGE over summaries."""
    sys.modules["bert_score"] = types.ModuleType("bert_score")
    sys.modules["bert_score"].BERTScorer = None
    from helm.benchmark.metrics.evaluate_reference_metrics import get_rouge_function
    from helm.benchmark.metrics.summarization_metrics import SummarizationMetric

    metric = SummarizationMetric.__new__(SummarizationMetric)
    metric.rouge_fns = {f"rouge_{k}": get_rouge_function(f"rouge{k.upper()}") for k in "12l"}
    means = {}
    for state in states:
        gold = [metric._remove_braces(answer) for answer in state["answers"]]
        said = metric._remove_braces(state["text"].strip())
        for name, score in metric._compute_rouge(gold, said).items():
            means.setdefault((name, state["split"]), []).append(float(score))
    return [[name, split, None, "", sum(found) / len(found)] for (name, split), found in means.items()]


def misspellings(folder):
    """Returns the part of HELM's list of misspellings that the texts can have."""
    import helm.benchmark.augmentations as augmentations

    words = json.loads((Path(augmentations.__file__).parent / "correct_to_misspelling.json").read_text())
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".pk", ".lock")]
    had = {word for path in files for word in re.findall(r"\w+", path.read_text(encoding="utf-8").lower())}
    return {word: slips for word, slips in words.items() if had.issuperset(re.findall(r"\w+", word)) or "'" in word}


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    recorded = {"helm": version("crfm-helm"), "entries": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_helm_data(folder / "benchmark_output")
        address = f"http://127.0.0.1:{server.server_port}"
        asked_only = {entry: n for entry, n in ENTRIES.items() if entry.startswith("summarization")}
        scored = {entry: n for entry, n in ENTRIES.items() if entry not in asked_only}
        made_by = [*run(scored, folder, address), *run(asked_only, folder, address, "--dry-run")]
        for entry, made in made_by:
            states = asked(made)
            found = rouge(states) if entry.startswith("summarization") else scores(made)
            shown = states[0]["prompt"] if len(states[0]["prompt"]) < 4000 else None
            for state in states:
                for key in ("prompt", "answers", "split"):
                    del state[key]
            recorded["entries"][entry] = {"run": made.name, "first_prompt": shown, "asked": states, "scores": found}
            print(f"{entry}: {len(states)} prompts, {len(found)} scores", file=sys.stderr)
        recorded["misspellings"] = misspellings(folder / "benchmark_output" / "scenarios")
    lines = json.dumps(recorded, indent=0, ensure_ascii=False)
    Path(__file__).with_name("helm_recorded.json").write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
