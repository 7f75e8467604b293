"""The prompt of a generate script, from its flags, standard input and a file of earlier turns."""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.args import AskArgs
from lit_gpt.data.prepare.schemas import recognize
from lit_gpt.errors import UserError
from lit_gpt.generation.conversation import Asked, asked
from lit_gpt.prompts import Turn, open_style
from lit_gpt.records import read_json
from lit_gpt.tokenizer import Tokenizer

QUESTION = "What food do llamas eat?"


def ask(
    args: AskArgs, prompt_style: str, checkpoint_dir: Path, tokenizer: Tokenizer, end_ids: Collection[int] = ()
) -> Asked:
    """Returns the prompt for the model of a folder, in a prompt style.

    Args:
        end_ids: tokens that ended answers in training, besides the style's own; a tool call may end with another one.

    Raises:
        UserError: flags contradict each other, the file is not one conversation, or the style refuses it.
    """
    style = open_style(prompt_style, checkpoint_dir, tokenizer)
    return asked(style, tokenizer, *_conversation(args), end_ids=end_ids)


def _conversation(args: AskArgs) -> tuple[list[Turn], Sequence[Mapping[str, Any]]]:
    """Returns the turns, and the tools that may be called; raises UserError where flags contradict each other."""
    turns, tools = _read_conversation(args.conversation) if args.conversation else ([], ())
    if args.system:
        if turns and turns[0].role == "system":
            raise UserError(f"--system, and {args.conversation} has a system text of its own; pass one of them")
        turns = [Turn("system", args.system), *turns]
    is_asked = bool(turns) and turns[-1].role in ("user", "tool")
    if not is_asked:
        if args.conversation and args.prompt is None:
            raise UserError(f"{args.conversation} ends with an answer; pass --prompt, which is asked after it")
        return [*turns, Turn("user", _prompt(args.prompt), args.input)], tools
    if args.prompt is not None or args.input:
        flag = "input" if args.prompt is None else "prompt"
        raise UserError(
            f"--{flag}, and {args.conversation} ends with what is asked ({turns[-1].role}); pass one of them"
        )
    return turns, tools


def _prompt(given: str | None) -> str:
    """Returns the text of the prompt; raises UserError if standard input is asked for and empty."""
    if given != "-":
        return QUESTION if given is None else given
    text = sys.stdin.read()
    if not text.strip():
        raise UserError("--prompt - reads standard input, and there is nothing in it")
    return text.removesuffix("\n")


def _read_conversation(path: Path) -> tuple[list[Turn], Sequence[Mapping[str, Any]]]:
    """Returns the turns in a file, and the tools; raises UserError if the file is not one conversation."""
    try:
        entry = read_json(path, "pass a JSON file with one conversation")
    except (UserError, OSError) as e:
        raise UserError(f"--conversation {path} is no JSON file ({e})") from e
    if isinstance(entry, list):
        entry = {"messages": entry}
    rows = recognize(entry, str(path))(entry, str(path), "conversation")
    if len(rows) != 1:
        raise UserError(f"--conversation {path} has {len(rows)} conversations; pass a file with one")
    return list(rows[0].turns), rows[0].tools
