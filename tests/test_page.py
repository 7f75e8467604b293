"""The page of the server, pressed and read in a real browser: what it shows is what the server says, and no more."""

import json
import math
import os
import shutil
import subprocess

import pytest
from browser import chromium, prefer, resize, until
from chats import save_run_of
from script_processes import run
from serving import loaded_from, serving, with_template

pytest.importorskip("selenium", reason="selenium, which drives the browser, is not installed")
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

KEY = "secret-of-the-tests"
MESSAGE = "the hand <b>and</b> the thing"


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(downloads):
    with chromium(downloads) as driver:
        yield driver


@pytest.fixture(scope="module")
def base(checkpoint, tmp_path_factory):
    return with_template(checkpoint, tmp_path_factory.mktemp("page") / "tiny")


@pytest.fixture(scope="module")
def client(driver, base, tmp_path_factory):
    """A client of a server with a base and a run on it, which asks for a key."""
    run_dir = save_run_of("lora", base, tmp_path_factory.mktemp("out") / "mine")
    with serving(loaded_from(base, runs=(run_dir,)), key=KEY) as client:
        yield client


class Page:
    """What a user does on the page, and sees."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url

    def open(self, key=KEY, **settings):
        """Opens the page as on the first visit, but for the key and some settings."""
        kept = {"talks": {"chat": [], "text": []}, "settings": {"temperature": "0", "max_tokens": "24"} | settings}
        self.driver.get(f"{self.url}/health")
        self.driver.execute_script(
            "localStorage.setItem('lit-gpt', arguments[0]); sessionStorage.setItem('lit-gpt', arguments[1])",
            json.dumps(kept),
            key,
        )
        resize(self.driver, 1280, 860)
        self.driver.get(self.url)
        until(lambda: self.models() or self["trouble"].text)
        return self

    def __getitem__(self, name):
        return self.driver.find_element(By.ID, name)

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def texts(self, css):
        return self.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", css
        )

    def fill(self, **fields):
        for name, value in fields.items():
            self[name].send_keys(Keys.CONTROL + "a")
            self[name].send_keys(str(value), Keys.TAB)

    def models(self):
        return [option.text for option in self["model-0"].find_elements(By.TAG_NAME, "option")]

    def press(self, text, which=0):
        found = [b for b in self.all("button") if b.text == text and b.is_displayed()]
        found[which].click()

    def say(self, text):
        """Sends a message, waits for the end, and returns the texts of the last turn's answers."""
        self["draft"].send_keys(text, Keys.ENTER)
        return self.answers()

    def answers(self):
        until(lambda: self["send"].is_displayed() and not self.all(".going") and self.all(".answer"))
        return self.texts(".turn:last-child .answer > .words")

    def kept(self):
        return json.loads(self.driver.execute_script("return localStorage.getItem('lit-gpt')"))

    def focused(self):
        return self.driver.switch_to.active_element


@pytest.fixture(scope="module")
def page(driver, client):
    return Page(driver, str(client.base_url))


def chat(client, *messages, model="tiny", **body):
    """The server's own answer to messages of user and assistant in turns."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(messages)]
    body = {"messages": turns, "model": model, "temperature": 0, "max_tokens": 24} | body
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def test_an_answer_is_the_servers_in_tokens_with_their_alternatives(page, client):
    page.open()
    (text,) = page.say(MESSAGE)
    want = chat(client, MESSAGE, logprobs=True, top_logprobs=5)
    assert text == want["message"]["content"] and page.texts(".message > .words") == [MESSAGE]
    tokens = page.all(".answer .token")
    assert len(tokens) >= len(want["logprobs"]["content"])
    ActionChains(page.driver).move_to_element(tokens[2]).perform()
    shares = [share.text for share in until(lambda: page.all("#alternatives-of .share"))]
    tops = want["logprobs"]["content"][2]["top_logprobs"]
    assert shares == [shown(top["logprob"]) for top in tops]
    assert page["alternatives-of"].find_element(By.CSS_SELECTOR, ".drawn .share").text == shares[0]  # greedy


def shown(logprob):
    """A probability as the page writes it."""
    p = math.exp(logprob)
    return f"{100 * p:.2f} %" if p < 0.0995 else f"{100 * p:.1f} %"


def test_two_models_answer_beside_each_other_and_each_goes_on_from_its_own_answer(page, client):
    page.open()
    page["compare"].click()
    first = page.say("the hand")
    assert first == [chat(client, "the hand", model=m)["message"]["content"] for m in ("tiny", "mine")]
    assert first[0] != first[1]
    second = page.say("and then")
    for model, before, text in zip(("tiny", "mine"), first, second, strict=True):
        assert text == chat(client, "the hand", before, "and then", model=model)["message"]["content"]
    left, right = [answer.rect for answer in page.all(".turn:last-child .answer")]
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"]


def test_settings_reach_the_server(page, client):
    page.open()
    page.fill(system="Be loud.", temperature=0.9, top_p=0.9, top_k=40, min_p=0.01, seed=7, max_tokens=9,
              stop_texts=r"\n\n", repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.3)  # fmt: skip
    page.say("the hand")
    page.press("curl")
    body = json.loads(page["curl"].get_attribute("value").split("-d '")[1].rsplit("'", 1)[0])
    assert body == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "Be loud."}, {"role": "user", "content": "the hand"}],
        "temperature": 0.9, "max_tokens": 9, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": 7,
        "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3, "stop": ["\n\n"],
        "logprobs": True, "top_logprobs": 5, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_request_as_curl_gets_the_same_answer_and_does_not_carry_the_key(page):
    (text,) = page.open().say("it's a 'hand'\nand \"more\"")
    page.press("curl")
    command = page["curl"].get_attribute("value")
    assert "$API_KEY" in command and KEY not in command
    process = subprocess.run(["bash", "-c", command], env=os.environ | {"API_KEY": KEY}, capture_output=True, text=True)
    chunks = [json.loads(line[6:]) for line in process.stdout.splitlines() if line.startswith("data: {")]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == text


def test_what_was_said_survives_a_reload_and_new_and_undo_take_it_away_and_back(page):
    page.open()
    said = page.say("the hand")
    page["draft"].send_keys("half a mess")
    page.driver.refresh()
    assert page.texts(".answer > .words") == said and page["draft"].get_attribute("value") == "half a mess"
    assert page["temperature"].get_attribute("value") == "0"
    page.press("New")
    assert not page.all(".turn")
    page.press("Undo")
    assert page.texts(".answer > .words") == said
    until(page.models)
    page["draft"].clear()
    page.say("again")
    page.press("Undo")
    assert len(page.all(".turn")) == 1 and page["draft"].get_attribute("value") == "again"
    page.press("Forget all that this page keeps")
    until(lambda: page.all(".welcome"))
    assert not page["key"].get_attribute("value") and page["temperature"].get_attribute("value") == ""


def test_edit_and_retry_ask_anew_and_an_answer_can_be_put_right(page, client):
    page.open()
    page.say("the hand")
    page.say("more")
    page.press("Edit")  # of the first message: what came after it goes
    editor = page.focused()
    editor.send_keys(Keys.CONTROL + "a")
    editor.send_keys("the thing", Keys.ENTER)
    (text,) = page.answers()
    assert page.texts(".message > .words") == ["the thing"]
    assert text == chat(client, "the thing")["message"]["content"]
    page.fill(max_tokens=3)
    page.press("Retry")
    assert page.answers() == [chat(client, "the thing", max_tokens=3)["message"]["content"]]
    page.press("Edit", 1)
    page.focused().send_keys(Keys.CONTROL + "a")
    page.focused().send_keys("A better answer.", Keys.ENTER)
    page.fill(max_tokens=24)
    (text,) = page.say("more")
    assert text == chat(client, "the thing", "A better answer.", "more")["message"]["content"]


def test_the_download_is_rows_that_can_be_trained_on(page, base, downloads, tmp_path):
    page.open(system="Be loud.")
    page["compare"].click()
    answers = page.say("the hand")
    page.press("Download")
    path = downloads / "conversation.jsonl"
    until(path.exists)
    turns = [{"role": "system", "content": "Be loud."}, {"role": "user", "content": "the hand"}]
    want = [{"messages": [*turns, {"role": "assistant", "content": text}]} for text in answers]
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line] == want
    other = tmp_path / "other.jsonl"
    other.write_text(
        json.dumps(
            {"messages": [{"role": "user", "content": "What is rain?"}, {"role": "assistant", "content": "Wet."}]}
        ),
        encoding="utf-8",
    )
    process = run("scripts/prepare_json.py", "--checkpoint_dir", base, "--json_path", path, "--validation_file", other,
                  "--destination_path", tmp_path / "data", cwd=tmp_path)  # fmt: skip
    assert process.returncode == 0, process.stderr


def test_a_text_is_continued_and_continued_again(page, client):
    page.open()
    page.all("#modes span")[1].click()
    (text,) = page.say("the hand")
    body = {"prompt": "the hand", "model": "tiny", "temperature": 0, "max_tokens": 24}
    assert text == client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    page.press("Continue")
    assert page["draft"].get_attribute("value") == "the hand" + text.replace("\r\n", "\n").replace("\r", "\n")
    page.all("#modes span")[0].click()
    assert page.all(".welcome") and not page["draft"].get_attribute("value")


def test_escape_stops_an_answer_and_what_has_come_stays(page, client):
    page.open(max_tokens="480")
    page["draft"].send_keys("the hand", Keys.ENTER)
    until(lambda: page.texts(".answer .token"))
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    (text,) = page.answers()
    assert text and "stopped" in page.texts(".note")[0]
    whole = chat(client, "the hand", max_tokens=480)["message"]["content"]
    assert whole.startswith(text) and len(text) < len(whole)
    until(lambda: client.server.admission.n == 0)


def test_errors_are_said_in_words(page, driver, client):
    page.open(key="")
    assert "API key" in page["trouble"].text and page.focused() == page["key"]
    page.fill(key="wrong")
    until(lambda: "API key" in page["trouble"].text)
    page.fill(key=KEY)
    until(page.models)
    assert page["trouble"].text == ""
    page.fill(max_tokens=10_000)
    page.say("the hand")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "the hand"}], "max_tokens": 10_000}
    error = client.post("/v1/chat/completions", json=body).json()["error"]
    assert page.texts(".error") == [f"The server refused: {error['message']}"]
    page.fill(max_tokens=4, temperature=-1)
    page.press("Retry")
    assert page["trouble"].text.startswith("Temperature: ") and page.focused() == page["temperature"]
    page.fill(temperature=0)
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    page.press("Retry")
    page.answers()
    assert page.texts(".error") == ["The server cannot be reached: is it still running?"]
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline | {"offline": False})
    page.press("Retry")
    assert page.answers() != [""] and page.texts(".error") == [""]


def test_the_key_is_kept_for_the_tab_only_and_nothing_is_asked_elsewhere(page, driver, client):
    page.open()
    page.say("the hand")
    assert KEY not in driver.execute_script("return JSON.stringify(localStorage)")
    driver.refresh()
    until(page.models)  # the tab knows it still
    asked = driver.execute_script("return performance.getEntries().map((e) => e.name).filter((n) => n.includes(':'))")
    assert asked and all(url.startswith(page.url) for url in asked)
    assert "default-src 'none'" in client.get("/").headers["content-security-policy"]
    assert not [entry for entry in driver.get_log("browser") if "Security Policy" in entry["message"]]


CUTS = [
    ("the hand", [["the"], [" hand"]], ["the", " hand"]),
    ("the hand", [[" the"], [" hand"], ["</s>"]], ["the", " hand", ""]),
    ("a é!", [["a"], [" "], ["bytes:\\xc3"], ["bytes:\\xa9"], ["!"]], ["a", " ", "", "é", "!"]),
    ("é", [["\ufffd"], ["\ufffd"]], ["", "é"]),
    ("<b>x</b>", [["<b>"], ["x"], ["</b>"]], ["<b>", "x", "</b>"]),
    ("the hand", [["an"]], ["", "the hand"]),
    ("the hand", [], ["the hand"]),
]
"""A text, its tokens as a server names them, and the part of the text that each has on the page."""


def test_tokens_never_change_the_text_that_they_color(page, driver):
    page.open()
    for text, tokens, parts in CUTS:
        script = (
            "const [text, tokens, done] = arguments; import('/page/tokens.js').then((m) => {"
            "const place = document.createElement('div'); m.drawTokens(place, {text, tokens});"
            "done([[...place.children].map((e) => e.textContent), place.querySelectorAll('b').length]) })"
        )
        tokens = [[*token, -0.5, []] for token in tokens]
        assert driver.execute_async_script(script, text, tokens) == [parts, 0]


def test_everything_can_be_done_with_the_keyboard(page, driver):
    page.open()
    assert page.focused() == page["draft"]
    page["draft"].send_keys("the", Keys.SHIFT + Keys.ENTER + Keys.NULL, "hand")
    assert page["draft"].get_attribute("value") == "the\nhand" and not page.all(".turn")
    page["draft"].clear()
    page.say("the hand")
    assert page.focused() == page["draft"]
    seen = []
    driver.execute_script("document.activeElement.blur(); document.getElementById('talk').focus()")
    for _ in range(20):
        ActionChains(driver).send_keys(Keys.TAB).perform()
        seen.append(page.focused())
        if seen[-1] == page["draft"]:
            break
    names = [e.accessible_name for e in seen]
    assert [n for n in names if n.startswith(("Edit", "Retry", "curl"))] == [
        "Edit message 1", "Retry: answer of tiny, 1", "Edit: answer of tiny, 1", "curl: answer of tiny, 1",
    ]  # fmt: skip
    token = page.all(".answer .token")[0]
    assert token in seen  # one stop for all tokens; the arrows go on from there
    driver.execute_script("arguments[0].focus()", token)
    ActionChains(driver).send_keys(Keys.ARROW_RIGHT).perform()
    assert page.focused() == page.all(".answer .token")[1] and page["alternatives-of"].is_displayed()
    outline = driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    for field in page.all("input, select, textarea, button"):
        assert not field.is_displayed() or field.accessible_name, field.get_attribute("outerHTML")
    assert page.texts("#said") == [f"tiny: {page.texts('.answer > .words')[0]}"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_on_a_narrow_screen_light_or_dark(page, driver, scheme):
    prefer(driver, color_scheme=scheme, reduced_motion="reduce")
    page.open()
    page["compare"].click()
    page.say("the hand " * 20)
    resize(driver, 360, 640)
    for opened in (True, False):
        assert page["settings"].is_displayed() == opened
        assert driver.execute_script("return document.documentElement.scrollWidth") == 360
        for element in page.all("header button, header select, #draft, #send"):
            box = element.rect
            assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 640
        page["opens"].click()
    paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(251, 251, 250)", "dark": "rgb(20, 23, 28)"}[scheme]
    if os.environ.get("PAGE_SHOTS"):
        driver.save_screenshot(f"{os.environ['PAGE_SHOTS']}/{scheme}.png")
