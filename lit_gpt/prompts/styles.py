"""The built-in prompt styles, by name."""

from dataclasses import replace

from lit_gpt.prompts.style import Style

_ALPACA = "Write a response that appropriately completes the request.\n\n"
_STABLELM = (
    "# StableLM Tuned (Alpha version)\n"
    "- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.\n"
    "- StableLM is excited to be able to help the user, but will refuse to do anything that could be considered "
    "harmful to the user.\n"
    "- StableLM is more than just an information source, StableLM is also able to write poetry, short stories, and "
    "make jokes.\n"
    "- StableLM will refuse to participate in anything that could harm a human."
)
_FUNCTIONS = (
    '{"function": "search_bing", "description": "Search the web for content on Bing. This allows users to search '
    'online/the internet/the web for content.", "arguments": [{"name": "query", "type": "string", "description": '
    '"The search query string"}]}'
)
_FUNCTION_CALLING = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully aspossible. "
    "Your only response should be JSON formatted functions"
)
"""System text of Llama-2 function calling; the missing space is in Lit-GPT's, too."""

_LLAMA_2 = Style(
    "llama2",
    "[INST] {system}{prompt} [/INST]",
    lead=" ",
    tail=" ",
    system="<<SYS>>\n{system}\n<</SYS>>\n\n",
    trims="questions",
    begins="question",
)
"""The chat template of Llama-2-chat as a style."""
_ZEPHYR = Style(
    "tinyllama",
    "<|user|>\n{prompt}{eos}\n",
    ask="<|assistant|>\n",
    after="\n",
    system="<|system|>\n{system}{eos}\n",
)
"""The chat templates of Zephyr and of TinyLlama-Chat as a style."""

_ALL = (
    # https://github.com/tatsu-lab/stanford_alpaca#data-release, with a line break before the response
    Style(
        "alpaca",
        "### Instruction:\n{prompt}\n\n",
        ask="### Response:\n",
        after="\n\n",
        opening=f"Below is an instruction that describes a task. {_ALPACA}",
        opening_with_input="Below is an instruction that describes a task, paired with an input that provides further "
        f"context. {_ALPACA}",
        question_with_input="### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n",
    ),
    # https://github.com/openai/openai-python/blob/v0.27.6/chatml.md; SmolLM2, Qwen and others
    Style(
        "chatml",
        "<|im_start|>user\n{prompt}<|im_end|>\n",
        ask="<|im_start|>assistant\n",
        end="<|im_end|>",
        after="\n",
        system="<|im_start|>system\n{system}<|im_end|>\n",
    ),
    # the bare text, for a base model that continues it
    Style("plain", "{prompt}", after="\n\n"),
    # the styles below follow the models' own chat templates, or else their model cards; first turns are as in Lit-GPT
    Style(
        "stablelm-alpha",
        "<|USER|>{prompt}",
        ask="<|ASSISTANT|>",
        system="<|SYSTEM|>{system}",
        default_system=_STABLELM,
    ),
    replace(_ZEPHYR, name="stablelm-zephyr", eos="<|endoftext|>"),
    Style("stablecode", "###Instruction\n{prompt}", ask="###Response\n", after="\n"),
    Style("togethercomputer-chat", "<human>: {prompt}\n", ask="<bot>:", lead=" ", after="\n"),
    Style("togethercomputer-instruct", "Q: {prompt}\n", ask="A:", lead=" ", after="\n\n"),
    Style(
        "falcon",
        "User: {prompt}\n",
        after="\n",
        system="{system}\n",
        default_system="Do not prefix your replies with 'Bot: '",
    ),
    # as in FastChat, which trained Vicuna
    Style(
        "vicuna",
        "USER: {prompt} ",
        ask="ASSISTANT:",
        lead=" ",
        system="{system} ",
        default_system="A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions.",
    ),
    _LLAMA_2,
    replace(_LLAMA_2, name="codellama"),
    Style(
        "llama2-function-calling",
        "[INST]{system}{prompt}[/INST]\n\n",
        system="<<SYS>>\n{system}\n<</SYS>>\n\n",
        default_system=_FUNCTION_CALLING,
        opening=f"<FUNCTIONS>{_FUNCTIONS}</FUNCTIONS>\n\n",
        begins="question",
    ),
    Style(
        "freewilly2",
        "### User:\n{prompt}\n\n",
        ask="### Assistant:\n",
        after="\n\n",
        system="### System:\n{system}\n\n",
        default_system="This is a system prompt, please behave and help the user.",
    ),
    Style("platypus", "### Instruction:\n\n{prompt}\n\n", ask="### Response:\n", after="\n\n"),
    Style("nous-research", "### Instruction:\n{prompt}\n\n", ask="### Response:\n", after="\n\n"),
    Style("phi-1", "{prompt}\n\n", ask="Answer:", lead=" ", after="\n\n"),
    Style("phi-2", "Instruct: {prompt}\n", ask="Output:", lead=" ", after="\n"),
    _ZEPHYR,
    # Gemma 3 puts a system text before the first question; Gemma 1 and 2 refuse one
    Style(
        "gemma",
        "<start_of_turn>user\n{system}{prompt}<end_of_turn>\n",
        ask="<start_of_turn>model\n",
        end="<end_of_turn>",
        after="\n",
        trims="texts",
        begins="conversation",
    ),
)

STYLES: dict[str, Style] = {style.name: style for style in _ALL}
"""Style by name."""
