"""Who chats with a model sees answers as they come, keeps the cache over turns, can take back, retry, stop and save."""

import io
import json
import re
import runpy
import shutil
import sys
from dataclasses import replace

import pytest
from chats import TEMPLATE, Screen, chat, save_run_of, say
from conftest import ROOT
from script_processes import run

from lit_gpt.chat.terminal import harmless
from lit_gpt.errors import UserError


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """A tiny checkpoint with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "tiny"
    shutil.copytree(checkpoint, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def notes(capsys):
    """Returns what was said besides the answers since the last call."""
    return lambda: capsys.readouterr().err


@pytest.mark.parametrize("style", [None, "chatml", "alpaca", "plain", "togethercomputer-chat"])
def test_a_turn_computes_only_what_is_new(style, folder):
    """The tokens that the model wrote are those of the next prompt, even where their text has others."""
    session = chat(folder, style=style)
    before = say(session, "Who?")
    assert before.n_cached == 0
    for question in ("Why?", "the king and the thing", "é\n  x"):
        reply = say(session, question)
        known = before.asked.ids + before.ids
        assert reply.asked.ids[: len(known)] == known
        assert reply.n_cached == len(known) - (before.finish == "length")  # the last token was never fed
        before = reply
    assert session.voices[0].tokenizer.continue_batch([before.text])[0] != before.ids


def test_an_answer_is_the_same_with_the_cache_as_without_it(folder):
    warm = say(chat(folder), "Who?", "Why?", "When?")
    cold = chat(folder)
    say(cold, "Who?", "Why?")
    for voice in cold.voices:
        while voice.engine.scheduler.prefixes.evict():
            pass
    reply = say(cold, "When?")
    assert reply.n_cached == 0 < warm.n_cached and (reply.ids, reply.text) == (warm.ids, warm.text)


def test_retry_draws_anew_undo_goes_back_and_the_seed_repeats_a_chat(folder, notes):
    session, again = chat(folder, temperature=1.5), chat(folder, temperature=1.5)
    first, second = say(session, "Who?"), say(session, "Why?")
    assert say(session, "/retry").asked.ids == second.asked.ids and session.replies[-1].ids != second.ids
    assert len(session.voices[0].conversation.said) == 2
    say(session, "/undo", "/undo")
    assert session.last is None and "taken back: Who?" in notes()
    say(session, "/set seed 1234")
    assert say(session, "Who?").ids == first.ids == say(again, "Who?").ids
    assert say(session, "Why?").ids == second.ids
    for command in ("/undo", "/retry", "/continue", "/save", "/stats"):
        with pytest.raises(UserError, match=r"nothing|no answer"):
            say(chat(folder), command)


def test_an_answer_that_is_cut_goes_on_where_it_was(folder, notes):
    session, whole = chat(folder, ends=(), max_new_tokens=5, temperature=0), chat(folder, ends=(), temperature=0)
    say(session, "Who?")
    assert "cut at max_new_tokens 5; /continue" in notes()
    begun = session.replies[-1]
    reply = say(session, "/continue")
    assert reply.n_cached == len(begun.asked.ids) + 4 and len(reply.ids) == 10
    assert reply.ids == say(whole, "Who?").ids[:10] and session.last.ids == tuple(reply.ids)
    assert [s.question for s in session.voices[0].conversation.said] == ["Who?"]
    said = session.voices[0].conversation.said
    said[-1] = replace(said[-1], is_whole=True)
    with pytest.raises(UserError, match="ended its answer itself"):
        say(session, "/continue")


def test_a_conversation_that_is_too_long_loses_its_oldest_exchanges_and_keeps_the_system_text(folder, notes):
    session = chat(folder, ends=(), max_new_tokens=30)
    voice, c = session.voices[0], session.voices[0].conversation
    say(session, "/system Be brief.")
    for i in range(20):
        before, first = c.first, f"Question {i} is it?"
        notes()
        reply = say(session, first)
        assert len(reply.asked.ids) + 30 <= voice.room == 512
        assert reply.asked.text.startswith("[system]Be brief.</s>[user]Question ")
        assert reply.asked.text.count("[user]") == i + 1 - c.first  # whole turns, the latest ones
        said = notes()
        assert said.count("any more") == (c.first > before)
        if c.first > before:
            assert len(reply.asked.ids) + 30 <= 384  # so that the next ones need not move on
    assert len(c.said) == 20 and c.first > 5
    with pytest.raises(UserError, match=r"the question has .* tokens without what was said before, and the model has"):
        say(session, "word " * 200)
    assert len(c.said) == 20
    say(session, *["/undo"] * 20)
    assert c.first == 0 and not c.said


def test_settings_are_those_of_the_flags_with_their_checks(folder, notes):
    session = chat(folder)
    say(session, "/set")
    assert [line.split()[0] for line in notes().splitlines()][:2] == ["max_new_tokens", "temperature"]
    say(session, "/set temperature 0", "/set top_k=3", "/set --top_k null", "/set top-p 0.5", "/set max 7")
    assert (session.args.temperature, session.args.top_k, session.args.top_p) == (0, None, 0.5)
    assert say(session, "Who?").n_new <= 7
    for wrong, message in {
        "temperature -1": "at least 0", "top_p 2": "at most 1", "top_p": None, "max_new_tokens x": "must be",
        "tempreature 1": "did you mean temperature", "nothing 3": "there are max_new_tokens", "top_k 0": "at least 1",
    }.items():  # fmt: skip
        before = session.args
        if message is None:
            say(session, f"/set {wrong}")
        else:
            with pytest.raises(UserError, match=message):
                say(session, f"/set {wrong}")
        assert session.args == before


def test_the_system_text_is_shown_set_and_refused_where_a_style_has_no_place_for_it(folder, notes, tmp_path):
    session = chat(folder)
    say(session, "/system", "/system Be brief.", "/system", "Who?")
    assert notes().splitlines() == ["[no system text]", "system text: Be brief.", "system text: Be brief."]
    assert session.replies[-1].asked.text.startswith("[system]Be brief.</s>[user]Who?")
    say(session, "/new", "Who?")
    assert session.replies[-1].asked.text.startswith("[system]Be brief.</s>[user]Who?")
    say(session, "/system -", "Why?")
    assert "system" not in session.replies[-1].asked.text
    shutil.copytree(folder, tmp_path / "strict")
    refuses = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}{% endfor %}"
    (tmp_path / "strict" / "chat_template.jinja").write_text(refuses + TEMPLATE)
    session = chat(tmp_path / "strict")
    with pytest.raises(UserError, match="refuses a conversation"):
        say(session, "/system Be brief.")
    assert say(session, "Who?").asked.text.startswith("[user]Who?")


def test_what_is_saved_is_training_data(folder, notes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = chat(folder)
    said = session.voices[0].conversation.said

    def ask(*questions):
        say(session, *questions)
        said[:] = [replace(s, answer=s.answer.strip() or "x", is_whole=s.question != "When?") for s in said]

    ask("/system Be brief.", "Who?", "Why?")
    say(session, "/save")
    with pytest.raises(UserError, match="saved already"):
        say(session, "/save")
    ask("When?")
    say(session, "/save")
    assert "a row with 3 answers, 1 of them cut and not taught" in notes()
    say(session, "/new")
    said = session.voices[0].conversation.said
    ask("Who\nare you?")
    say(session, "/save out/chat.jsonl")
    assert "scripts/prepare_json.py --json_path out/chat.jsonl" in notes()
    rows = [json.loads(line)["messages"] for line in (tmp_path / "out" / "chat.jsonl").read_text().splitlines()]
    assert [len(row) for row in rows] == [5, 7, 3] and rows[1][:5] == rows[0]
    assert rows[0][:2] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    assert [m.get("weight", 1) for m in rows[1] if m["role"] == "assistant"] == [1, 1, 0]
    assert rows[2][1]["content"] == "Who\nare you?" and rows[2][2]["content"] == said[0].answer
    done = run("scripts/prepare_json.py", "--json_path", "out/chat.jsonl", "--checkpoint_dir", folder,
               "--prompt_style", "chat_template", "--destination_path", "data/chat", "--test_split_fraction", 0.3,
               cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0 and (tmp_path / "data" / "chat" / "meta.json").is_file(), done.stderr
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/rows cannot be written"):
        say(session, "/save file/rows")
    (tmp_path / "open").write_text('{"messages": []}')  # without a line break at its end
    say(session, "/save open")
    assert len((tmp_path / "open").read_text().splitlines()) == 2


def test_a_text_that_begins_with_a_slash_is_a_command_or_says_how_to_say_it(folder, notes):
    session = chat(folder)
    for wrong, message in {
        "/foo": "no command /foo",
        "/svae": "did you mean /save",
        "/undo 3": "takes nothing",
    }.items():
        with pytest.raises(UserError, match=message):
            say(session, wrong)
    assert say(session, "/usr/bin is what?").asked.text.startswith("[user]/usr/bin is what?")
    say(session, "/help")
    shown = notes()
    for command in ["/new", "/system", "/set", "/retry", "/continue", "/undo", "/save", "/stats", "/help", "/quit"]:
        assert command in shown
    with pytest.raises(EOFError):
        say(session, "/quit")


@pytest.mark.parametrize("method", ["lora", "adapter"])
def test_a_run_is_compared_with_its_base_each_in_its_own_conversation(method, folder, tmp_path, capsys):
    run_dir = save_run_of(method, folder, tmp_path / "out" / method / "mine")
    base, finetuned = chat(folder, run=run_dir, compare=True).voices
    assert (base.engine is finetuned.engine) == (method == "lora")
    session = chat(folder, run=run_dir, compare=True)
    say(session, "Who?", "/retry", "Why?")
    shown = capsys.readouterr().out
    assert re.findall(r"^(\S*):$", shown, re.MULTILINE) == ["base", f"{method}/mine"] * 3
    alone = [chat(folder), chat(folder, run=run_dir)]
    for voice, other, reply in zip(session.voices, alone, session.replies, strict=True):
        say(other, "Who?", "/retry")
        assert say(other, "Why?").ids == reply.ids
        assert voice.conversation.turns() == other.voices[0].conversation.turns()
    texts = [reply.asked.text[:6] for reply in session.replies]
    assert texts == ["[user]", "Below "]


def test_a_checkpoint_alone_has_nothing_to_be_compared_with(folder):
    with pytest.raises(UserError, match="--compare true shows a run beside its base"):
        chat(folder, compare=True)


def piped(monkeypatch, capsys, text, *argv):
    """Runs the script on a pipe, in this process; returns its exit code, its answers and its notes."""
    monkeypatch.setattr(sys, "argv", ["generate/chat.py", *map(str, argv)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))
    code = 0
    try:
        runpy.run_path(str(ROOT / "generate" / "chat.py"), run_name="__main__")
    except SystemExit as e:
        code = e.code
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_what_comes_through_a_pipe_is_answered_line_by_line(folder, monkeypatch, capsys):
    flags = ("--checkpoint_dir", folder, "--max_new_tokens", 9, "--temperature", 0)
    text = b'Who?\n\ntwo \\\nlines\n/set max_new_tokens 4\n"""a\n\nb\n"""\n\xff'
    code, out, notes = piped(monkeypatch, capsys, text, *flags)
    session = chat(folder, ends=(), max_new_tokens=9, temperature=0)
    expected = [say(session, "Who?").text, say(session, "two \nlines").text]
    expected += [say(session, "/set max 4", "a\n\nb").text, say(session, "\ufffd").text]
    capsys.readouterr()
    assert code == 0 and out == "".join(f"{harmless(answer).lstrip()}\n" for answer in expected)
    assert "> " not in notes and "\x1b" not in notes
    code, out, notes = piped(monkeypatch, capsys, b"/foo\nWho?\n", *flags)
    assert code == 1 and out == "" and notes.splitlines()[-1].startswith("error: there is no command /foo")
    code, out, notes = piped(monkeypatch, capsys, b"Who?\n", *flags, "--temperature", -1)
    assert code == 1 and notes == "error: --temperature -1.0 must be at least 0\n"
    code, out, notes = piped(monkeypatch, capsys, b"word " * 300, *flags)
    assert code == 1 and "the model has room for 512" in notes.splitlines()[-1]


def test_a_user_in_a_terminal(folder, tmp_path):
    """One session, since a script takes its time to start."""
    env = {"LIT_GPT_TRACEBACK": "", "NO_COLOR": ""}
    flags = ("--max_new_tokens", 400, "--seed", 5, "--system", "Be brief.")
    with Screen("generate/chat.py", "--checkpoint_dir", folder, *flags, cwd=tmp_path, env=env) as screen:
        screen.until("/help lists commands; ctrl-D leaves.")
        screen.until("> ")
        screen.type("/set max_new_tokens 5\n")
        screen.until("max_new_tokens 5\n")
        screen.type("Who?\n")
        screen.until("Who\\?\n.*cut at max_new_tokens 5; /continue lets it go on.*> ")
        screen.type("/set max 400\n")
        screen.until("max_new_tokens 400\n.*> ")
        screen.type("one \\\n")
        screen.until(r"\. ")
        screen.type("two\n")
        stopped = False
        while not stopped:  # the answer may be whole before ctrl-C comes
            screen.until("\n(?:\x1b\\[\\?2004l\r?)?[^\\s\x1b>]")  # its first character is there before its last is made
            stopped = "/retry asks again]" in screen.interrupt(r"(leaves|asks again|ones)\].*> ")
            screen.type("" if stopped else "/retry\n")
        screen.type("/stats\n")
        screen.until(r"in the cache; first token after .*> ")
        screen.type("/save rows.jsonl\n")
        screen.until(r"added to rows.jsonl: a row with 2 answers, 2 of them cut and not taught.*> ")
        screen.type("half a word")
        screen.until("half a word")
        screen.interrupt("ctrl-C again or ctrl-D leaves.*> ")
        screen.type("/foo\n")
        screen.until("error: there is no command /foo; .*> ")
        screen.type("\x1b[A\x1b[A\n")  # the history: two lines up
        screen.until("error: the conversation is saved already.*> ")
        screen.interrupt("ctrl-C again.*> ")
        screen.type("\x03")
        assert screen.ended() == 0 and "error" not in screen.shown[screen.at :]
    assert not {c for c in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.shown) if c < " "} - set("\n\t\r\x07\x08")
    (row,) = (json.loads(line)["messages"] for line in (tmp_path / "rows.jsonl").read_text().splitlines())
    assert [m["content"] for m in row if m["role"] != "assistant"] == ["Be brief.", "Who?", "one \ntwo"]
    history = tmp_path / "state" / "lit-gpt" / "chat_history"
    assert history.stat().st_mode & 0o777 == 0o600 and "/save rows.jsonl" in history.read_text().splitlines()
    assert {path.name for path in tmp_path.iterdir()} == {"state", "rows.jsonl"}


def test_answers_into_a_file_leave_prompts_and_notes_on_the_terminal(folder, tmp_path):
    with open(tmp_path / "answers", "w") as file:
        flags = ("--checkpoint_dir", folder, "--max_new_tokens", 5)
        with Screen("generate/chat.py", *flags, cwd=tmp_path, env={"NO_COLOR": "1"}, out=file) as screen:
            screen.until("> ")
            screen.type("Who?\n")
            screen.until("cut at max_new_tokens 5.*> ")
            screen.type("\x04")
            assert screen.ended() == 0 and "\x1b" not in screen.shown
    answers = (tmp_path / "answers").read_text()
    assert answers.endswith("\n") and "\x1b" not in answers and "Who?" not in answers
