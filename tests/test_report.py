"""The page of a run stands on its own: well-formed, no other file, no network, nothing of the run taken for markup."""

import csv
import json
import re
from html.parser import HTMLParser

import pytest

from lit_gpt.report.curves import MOST_POINTS, Line, chart, shown, thinned, ticks
from lit_gpt.report.page import write_report
from lit_gpt.training.run.metrics import COLUMNS

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Collects tags, and fails where one is closed that is not open."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.links += [v for k, v in attrs if k in ("src", "href", "action", "data", "srcset", "poster")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.links += [v for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run_dir(tmp_path):
    run = {"method": "lora", "base": "checkpoints/<b>x</b>", "method_args": {"lora_r": 8, "lora_mlp": True},
           "training": {"precision": "32-true", "epochs": None, "name": "</script><script>alert(1)</script>"},
           "data": {"folder": "data/d", "samples": {"train": 20}}, "versions": {"torch": "2"}}  # fmt: skip
    (tmp_path / "finetuned.json").write_text(json.dumps(run))
    outcome = [{"what": "peak memory, GB", "planned": 1.1, "actual": 1.0, "error": 0.1, "source": "from the shapes"},
               {"what": "time", "planned": 66.0, "actual": 60.0, "error": 0.1, "source": "first 3 steps"}]  # fmt: skip
    plan = {"memory": {"frozen weights": 5 * 10**8, "margin": 0}, "work": {"n_steps": 5}, "outcome": outcome}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with open(tmp_path / "metrics.csv", "w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerow({"iter": 0, "step": 0, "samples": 0, "seconds": 1.0, "val_loss": 2.5})
        for i in range(1, 11):
            table.writerow(
                {"iter": i, "step": (i + 1) // 2, "samples": 4 * i, "seconds": 1.0 + i, "loss": 2.5 - 0.1 * i,
                 "learning_rate": 1e-4, "tokens_per_sec": 100.0, "iter_time_ms": 1000, "n_tokens": 100,
                 "n_targets": 30 if i % 2 else 10, "of_peak": 0.5, "memory_gb": 1.25}
            )  # fmt: skip
        table.writerow({"iter": 10, "step": 5, "samples": 40, "seconds": 12.0, "val_loss": 1.5})
    return tmp_path


def parsed(run_dir):
    page = Page()
    page.feed(write_report(run_dir).read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_the_page_is_well_formed_and_asks_for_nothing(run_dir):
    page = parsed(run_dir)
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    assert page.links == ["data:,"]
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|import\(", text)
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert [tag for tag, _ in page.seen].count("script") == 1  # what the run is called is text
    assert "</script><script>alert(1)</script>" in page.text


def test_the_page_shows_loss_plan_settings_and_counts(run_dir):
    page = parsed(run_dir)
    for part in ("1.5000", "2.5000 before", "40", "2.00 epochs", "1.25 GB", "50% of a matrix product's rate", "+10.0%",
                 "0:01:06", "first 3 steps", "frozen weights", "optimizer steps", "lora_mlp"):  # fmt: skip
        assert part in page.text, part
    curves = [json.loads(attrs["data-curve"]) for tag, attrs in page.seen if tag == "figure"]
    loss = next(c for c in curves if c["names"] == ["training", "validation"])
    assert [p[2:] for p in loss["lines"][1]] == [[0, 2.5], [5, 1.5]]
    step, mean = loss["lines"][0][0][2:]
    assert step == 1 and mean == pytest.approx((2.4 * 30 + 2.3 * 10) / 40)  # weighted by targets


def test_a_run_without_a_plan_or_a_line_has_a_page(run_dir):
    (run_dir / "plan.json").unlink()
    (run_dir / "metrics.csv").write_text(",".join(COLUMNS) + "\n")
    assert "Plan and fact" not in parsed(run_dir).text


@pytest.mark.parametrize("span", [(0.0, 3.2), (1.0, 1.0), (0.0, 3e-4), (0.0, 27.4), (-2.0, 5.0), (0.0, 0.0)])
def test_ticks_are_round_and_span_the_values(span):
    found = ticks(*span)
    assert 2 <= len(found) <= 8 and found[0] <= span[0] and found[-1] >= span[1]


@pytest.mark.parametrize("high", [3e-4, 2e-4, 8e-5, 1.25e-5, 7e-3, 1.0, 250.0, 12_500.0])
def test_the_label_of_a_tick_is_its_value(high):
    found = ticks(0.0, high)
    labels = [shown(t) for t in found]
    assert [float(label.replace("k", "e3").replace(",", "")) for label in labels] == pytest.approx(found)
    assert all(len(label) <= 7 for label in labels)


def test_curves_of_any_length_and_value_are_drawn():
    assert len(thinned([(float(i), 1.0) for i in range(100_000)])) <= MOST_POINTS
    assert chart("none", [Line("a", [])], "x") == ""
    picture = chart("one", [Line("a", [(1.0, float("nan")), (2.0, 1.0)])], "x")
    assert "nan" not in picture and "<circle" in picture
