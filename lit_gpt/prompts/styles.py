"""Prompt styles written down here: what stands around the texts of a conversation.

`{system}`, `{prompt}` and `{input}` are replaced. An answer follows `first` or `again`, and an end-of-sequence token
follows the answer; `again` comes after that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_gpt.prompts.turns import Exchange, Turn

ALPACA = "Write a response that appropriately completes the request.\n\n"


@dataclass(frozen=True)
class Style:
    """Texts around those of a conversation."""

    first: str
    """Up to the first answer."""
    again: str
    """From the end of one answer to the next."""
    system: str = ""
    """Text in the place of `{system}` in a conversation that has none of its own."""
    first_with_system: str = ""
    """In the place of `first` where there is a system text, own or default; empty puts it before the first question."""
    first_with_input: str = ""
    """In the place of `first` where the question has a context; empty puts it after the question."""
    again_with_input: str = ""
    lead: str = ""
    """What an answer begins with: a space after a colon is the model's to write, with the word after it."""

    def exchanges(self, turns: Sequence[Turn], tools: Sequence[Any] = ()) -> list[Exchange]:
        """Prompt and answer in turns; the last answer may be missing."""
        system = turns[0].text if turns[0].role == "system" else self.system
        found: list[Exchange] = []
        for turn in turns[turns[0].role == "system" :]:
            if turn.role == "assistant":
                found[-1] = Exchange(found[-1].prompt, self.lead + turn.text, None, turn.taught)
            else:
                found.append(Exchange(self.again_prompt(turn) if found else self.first_prompt(turn, system)))
        return found

    def first_prompt(self, turn: Turn, system: str) -> str:
        shape = self.first_with_input if turn.context and self.first_with_input else self.first
        shape = self.first_with_system if system and self.first_with_system else shape
        before = f"{system}\n\n" if system and "{system}" not in shape else ""
        return before + filled(shape, turn, system)

    def again_prompt(self, turn: Turn) -> str:
        return filled(self.again_with_input if turn.context and self.again_with_input else self.again, turn)


def filled(shape: str, turn: Turn, system: str = "") -> str:
    """`shape` with the texts in it, in one pass: what looks like a name within a text stays."""
    given = turn.context if "{input}" in shape else ""
    prompt = turn.text if given or not turn.context else f"{turn.text}\n\n{turn.context}"
    texts = {"{system}": system, "{prompt}": prompt, "{input}": given}
    parts = [shape]
    for name, text in texts.items():
        parts = [piece for part in parts for piece in split(part, name, text)]
    return "".join(map(str, parts))


class Said(str):
    """A text of the conversation, which is not searched for names."""


def split(part: str, name: str, text: str) -> list[str]:
    if isinstance(part, Said):
        return [part]
    pieces = part.split(name)
    return [pieces[0], *(x for piece in pieces[1:] for x in (Said(text), piece))]


LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not make "
    "any sense, or is not factually coherent, explain why instead of answering something not correct. If you don't "
    "know the answer to a question, please don't share false information."
)
STABLELM = (
    "# StableLM Tuned (Alpha version)\n"
    "- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.\n"
    "- StableLM is excited to be able to help the user, but will refuse to do anything that could be considered "
    "harmful to the user.\n"
    "- StableLM is more than just an information source, StableLM is also able to write poetry, short stories, and "
    "make jokes.\n"
    "- StableLM will refuse to participate in anything that could harm a human."
)
FUNCTIONS = (
    '{"function": "search_bing", "description": "Search the web for content on Bing. This allows users to search '
    'online/the internet/the web for content.", "arguments": [{"name": "query", "type": "string", "description": '
    '"The search query string"}]}'
)
FUNCTION_CALLING = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully aspossible. "
    "Your only response should be JSON formatted functions"
)
"""The missing space is Lit-GPT's own."""

STYLES: dict[str, Style] = {
    # https://github.com/tatsu-lab/stanford_alpaca#data-release, with a line break before the response
    "alpaca": Style(
        f"Below is an instruction that describes a task. {ALPACA}### Instruction:\n{{prompt}}\n\n### Response:\n",
        "\n\n### Instruction:\n{prompt}\n\n### Response:\n",
        first_with_input="Below is an instruction that describes a task, paired with an input that provides further "
        f"context. {ALPACA}### Instruction:\n{{prompt}}\n\n### Input:\n{{input}}\n\n### Response:\n",
        again_with_input="\n\n### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n### Response:\n",
    ),
    # https://github.com/openai/openai-python/blob/v0.27.6/chatml.md; SmolLM2, Qwen and others
    "chatml": Style(
        "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
        "\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
        first_with_system="<|im_start|>system\n{system}<|im_end|>\n"
        "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
    ),
    # the text itself, for a model that is to continue it
    "plain": Style("{prompt}", "\n\n{prompt}"),
    # those below as the models' cards have them, first turns as in Lit-GPT
    "stablelm-alpha": Style(
        "<|SYSTEM|>{system}<|USER|>{prompt}<|ASSISTANT|>", "<|USER|>{prompt}<|ASSISTANT|>", system=STABLELM
    ),
    "stablelm-zephyr": Style(
        "<|user|>\n{prompt}<|endoftext|>\n<|assistant|>\n",
        "\n<|user|>\n{prompt}<|endoftext|>\n<|assistant|>\n",
        first_with_system="<|system|>\n{system}<|endoftext|>\n<|user|>\n{prompt}<|endoftext|>\n<|assistant|>\n",
    ),
    "stablecode": Style("###Instruction\n{prompt}###Response\n", "\n###Instruction\n{prompt}###Response\n"),
    "togethercomputer-chat": Style("<human>: {prompt}\n<bot>:", "\n<human>: {prompt}\n<bot>:", lead=" "),
    "togethercomputer-instruct": Style("Q: {prompt}\nA:", "\n\nQ: {prompt}\nA:", lead=" "),
    "falcon": Style(
        "{system}\nUser: {prompt}\n", "\nUser: {prompt}\n", system="Do not prefix your replies with 'Bot: '"
    ),
    "vicuna": Style(
        "{system} USER: {prompt} ASSISTANT:",
        "USER: {prompt} ASSISTANT:",
        system="A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions.",
        lead=" ",
    ),
    "llama2": Style(
        "[INST] <<SYS>>\n{system}\n<</SYS>>\n\n {prompt} [/INST]",
        "[INST] {prompt} [/INST]",
        system=LLAMA_2,
        lead=" ",
    ),
    "llama2-function-calling": Style(
        f"<FUNCTIONS>{FUNCTIONS}</FUNCTIONS>\n\n[INST]<<SYS>>\n{{system}}\n<</SYS>>\n\n{{prompt}}[/INST]\n\n",
        "[INST]{prompt}[/INST]\n\n",
        system=FUNCTION_CALLING,
    ),
    "freewilly2": Style(
        "### System:\n{system}\n\n### User:\n{prompt}\n\n### Assistant:\n",
        "\n\n### User:\n{prompt}\n\n### Assistant:\n",
        system="This is a system prompt, please behave and help the user.",
    ),
    "platypus": Style(
        "### Instruction:\n\n{prompt}\n\n### Response:\n", "\n\n### Instruction:\n\n{prompt}\n\n### Response:\n"
    ),
    "nous-research": Style(
        "### Instruction:\n{prompt}\n\n### Response:\n", "\n\n### Instruction:\n{prompt}\n\n### Response:\n"
    ),
    # a tokenizer that begins with <s> does so here too, so that the card's own <s> would be a second one
    "codellama": Style(
        "[INST] {prompt} [/INST]",
        "[INST] {prompt} [/INST]",
        first_with_system="[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{prompt} [/INST]",
        lead=" ",
    ),
    "phi-1": Style("{prompt}\n\nAnswer:", "\n\n{prompt}\n\nAnswer:", lead=" "),
    "phi-2": Style("Instruct: {prompt}\nOutput:", "\nInstruct: {prompt}\nOutput:", lead=" "),
    "tinyllama": Style(
        "<|system|>\n{system}</s>\n<|user|>\n{prompt}</s>\n<|assistant|>\n",
        "\n<|user|>\n{prompt}</s>\n<|assistant|>\n",
        system="You are a friendly chatbot who always gives helpful, detailed, and polite answers.",
    ),
    "gemma": Style(
        "<start_of_turn>user\n{prompt}<end_of_turn>\n<start_of_turn>model\n",
        "\n<start_of_turn>user\n{prompt}<end_of_turn>\n<start_of_turn>model\n",
    ),
}
"""Name -> texts."""
