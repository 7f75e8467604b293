"""Prompt styles by name: how an instruction becomes the text that the model continues."""

from collections.abc import Callable

from lit_gpt.errors import UserError


def alpaca(instruction: str, context: str) -> str:
    """https://github.com/tatsu-lab/stanford_alpaca#data-release, with a line break before the response."""
    paired = ", paired with an input that provides further context" if context else ""
    given = f"### Input:\n{context}\n\n" if context else ""
    return (
        f"Below is an instruction that describes a task{paired}. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n{given}### Response:\n"
    )


def chatml(instruction: str, context: str) -> str:
    """One turn of the format of SmolLM2, Qwen and others; https://github.com/openai/openai-python/blob/v0.27.6/chatml.md"""
    return f"<|im_start|>user\n{joined(instruction, context)}<|im_end|>\n<|im_start|>assistant\n"


def plain(instruction: str, context: str) -> str:
    """The text itself, for a model that is to continue it."""
    return joined(instruction, context)


def joined(instruction: str, context: str) -> str:
    return f"{instruction}\n\n{context}" if context else instruction


PROMPTS: dict[str, Callable[[str, str], str]] = {"alpaca": alpaca, "chatml": chatml, "plain": plain}


def make_prompt(style: str, instruction: str, context: str = "") -> str:
    """The prompt for `instruction`, with an optional `context` (Alpaca's `input`).

    Raises:
        UserError: no style of that name.
    """
    if style not in PROMPTS:
        raise UserError(f"unknown prompt style {style!r}; known are {', '.join(PROMPTS)}")
    return PROMPTS[style](instruction, context)
