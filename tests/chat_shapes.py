"""Chat templates of the shapes that published ones have, each cut down to what makes it hard."""

import json
from dataclasses import dataclass
from pathlib import Path

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)


@dataclass(frozen=True)
class Shape:
    """A template, and the tokenizer that it is for."""

    template: str
    special: tuple[str, ...]
    eos: str
    end: str | None = None
    """The token that ends an answer; None is `eos`."""
    bos: str | None = None
    stops: tuple[str, ...] = ()
    """Tokens of generation_config.json at which generation ends, too."""
    system: bool = True
    """Whether it takes a system text."""
    history: bool = True
    """Whether it goes on showing answers, and what is before them, as generation saw them."""
    whole: bool = True
    """Whether a sample is the text that the template makes of the row, up to the last end."""

    def write(self, folder: Path) -> Path:
        """A folder with a byte-level tokenizer and the template."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        folder.mkdir(parents=True, exist_ok=True)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(alphabet)}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(list(self.special))
        backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eos, "bos_token": self.bos}
        config |= {"add_bos_token": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "chat_template.jinja").write_text(self.template)
        if self.stops:
            ids = [backend.token_to_id(token) for token in (self.eos, *self.stops)]
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        return folder


SHAPES = {
    "chatml, base": Shape(CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|endoftext|>", "<|im_end|>"),
    "gemma": Shape(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\n' }}"
        "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{{ '<start_of_turn>model\n' if add_generation_prompt }}",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        "<end_of_turn>",
        "<bos>",
        system=False,
    ),
    "llama 3.1": Shape(
        "{{ bos_token }}{% set own = messages[0].role == 'system' %}{{ '<|start|>system<|head|>\n\nToday: ' }}"
        "{{ strftime_now('%d %b %Y') + '\n\n' + (messages[0].content if own else '') + '<|eot|>' }}"
        "{% for m in messages[1:] if own %}{{ '<|start|>' + m.role + '<|head|>\n\n' + m.content | trim + '<|eot|>' }}"
        "{% endfor %}{% for m in messages if not own %}"
        "{{ '<|start|>' + m.role + '<|head|>\n\n' + m.content | trim + '<|eot|>' }}{% endfor %}"
        "{{ '<|start|>assistant<|head|>\n\n' if add_generation_prompt }}",
        ("<|begin|>", "<|end_of_text|>", "<|start|>", "<|head|>", "<|eot|>"),
        "<|end_of_text|>",
        "<|eot|>",
        "<|begin|>",
    ),
    "mistral 0.3": Shape(
        "{% set own = messages[0].role == 'system' %}{% set rest = messages[1:] if own else messages %}{{ bos_token }}"
        "{% for m in rest %}{% if m.role == 'user' %}{{ '[INST] ' }}{% if own and loop.last %}"
        "{{ messages[0].content + '\n\n' }}{% endif %}{{ m.content + '[/INST]' }}{% else %}"
        "{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "</s>",
        bos="<s>",
        history=False,
        whole=False,
    ),
    "llama 2": Shape(
        "{% set own = messages[0].role == 'system' %}{% set rest = messages[1:] if own else messages %}"
        "{% for m in rest %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' }}"
        "{{ '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' if own and loop.first }}{{ m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>"),
        "</s>",
        bos="<s>",
    ),
    "phi 3": Shape(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}",
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|endoftext|>",
        "<|end|>",
    ),
    "qwen 3": Shape(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}"
        "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
        "{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
        "{{ '<think>\n\n</think>\n\n' if add_generation_prompt and enable_thinking is false }}",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
        "<|im_end|>",
        history=False,
    ),
    "deepseek r1": Shape(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
        "{{ '<|Assistant|>' + m.content.split('</think>')[-1].lstrip('\n') + eos_token }}{% else %}"
        "{{ ('<|User|>' if m.role == 'user' else '') + m.content }}{% endif %}{% endfor %}"
        "{{ '<|Assistant|><think>\n' if add_generation_prompt }}",
        ("<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>", "<think>", "</think>"),
        "<|end|>",
        bos="<|begin|>",
        history=False,
        whole=False,
    ),
    "deepseek 3.2": Shape(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|Assistant|></think>' }}"
        "{{ m.content + eos_token }}{% else %}{{ ('<|User|>' if m.role == 'user' else '') + m.content }}{% endif %}"
        "{% endfor %}{{ '<|Assistant|><think></think>' if add_generation_prompt }}",
        ("<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>", "<think>", "</think>"),
        "<|end|>",
        bos="<|begin|>",
        history=False,
        whole=False,
    ),
    "gemma 4": Shape(
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|turn>' + m.role + '\n' + m.content | trim + '<turn|>\n' }}{% endfor %}"
        "{{ '<|turn>assistant\n<|channel>thought\n<channel|>' if add_generation_prompt }}",
        ("<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>"),
        "<eos>",
        "<turn|>",
        "<bos>",
        history=False,
        whole=False,
    ),
    "command r7b": Shape(
        "{{ bos_token }}{% for m in messages %}{{ '<|TURN|><|' + m.role | upper + '|>' }}"
        "{% if m.role == 'assistant' %}{{ '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' }}{% else %}"
        "{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}"
        "{{ '<|TURN|><|ASSISTANT|><|START_THINKING|><|END_THINKING|>' }}",  # whoever asks
        ("<BOS>", "<|END_OF_TURN|>", "<|TURN|>", "<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>", "<|START_RESPONSE|>",
         "<|END_RESPONSE|>", "<|START_THINKING|>", "<|END_THINKING|>"),
        "<|END_OF_TURN|>",
        bos="<BOS>",
        history=False,
        whole=False,
    ),
    "apertus": Shape(
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|assistant_end|>' if loop.index0 and messages[loop.index0 - 1].role == 'assistant' }}"
        "{{ '<|' + m.role + '_start|>' + m.content }}{{ '<|' + m.role + '_end|>' if m.role != 'assistant' }}"
        "{% endfor %}{{ '<|assistant_start|>' if add_generation_prompt }}",
        ("<s>", "<|assistant_end|>", "<|assistant_start|>", "<|user_start|>", "<|user_end|>", "<|system_start|>",
         "<|system_end|>"),
        "<|assistant_end|>",
        bos="<s>",
    ),
    "glm 4": Shape(
        "{{ '[gMASK]<sop>' }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}"
        "{% endfor %}"
        "{{ '<|assistant|>\n' if add_generation_prompt }}",
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        "<|endoftext|>",
        "<|user|>",
        stops=("<|user|>",),
    ),
    "gpt-oss": Shape(
        "{% for m in messages %}{{ '<|start|>' + m.role + ('<|channel|>final' if m.role == 'assistant' else '') }}"
        "{{ '<|message|>' + m.content + ('<|return|>' if loop.last and m.role == 'assistant' else '<|end|>') }}"
        "{% endfor %}{{ '<|start|>assistant' if add_generation_prompt }}",
        ("<|return|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>"),
        "<|return|>",
        history=False,
    ),
    "no end": Shape(
        "{% for m in messages %}{{ m.role | upper + ': ' + m.content + '\n' }}{% endfor %}"
        "{{ 'ASSISTANT: ' if add_generation_prompt }}",
        ("</s>",),
        "</s>",
        whole=False,
    ),
    "end as text": Shape(
        CHATML.replace("<|im_end|>", "<|end|>"), ("</s>", "<|im_start|>"), "</s>", whole=False
    ),
}  # fmt: skip
"""Name -> shape."""
