"""A prompt style as a Jinja chat template, for tools that do not know our styles."""

from lit_gpt.prompts.style import Style, around, filled

_ALTERNATE = "this prompt style shows user and assistant in turns, after a system text at most"


def jinja_of(style: Style, gap: str = "") -> str:
    """Returns the Jinja program that renders a conversation as the style does.

    Special tokens are written out in it. A question has no separate context there: the user's text holds all of it.

    Args:
        gap: text to put after the begin-of-sequence token, where the tokenizer would otherwise write that token.
    """
    before, behind = around(filled(style.question, eos=style.eos), "{prompt}")
    inside = "{system}" in before
    before, between = around(before, "{system}") if inside else (before, "")
    system = _joined(*around(filled(style.system, eos=style.eos), "{system}"), variable="system")
    message = "m['content']" if style.trims == "no" else "m['content'] | trim"
    question = f"{{{{- {message} }}}}"
    if inside:
        whole = f"({system} + m['content']) | trim" if style.trims == "questions" else f"{system} + ({message})"
        question = f"{{%- if loop.first and system %}}{{{{- {whole} }}}}{{%- else %}}{question}{{%- endif %}}"
    answer = _joined(style.lead, style.tail + (style.end or style.eos), variable=f"({message})")
    again = style.after + (style.bos if style.begins == "question" else "")
    parts = [
        "{%- if messages[0]['role'] == 'system' %}",
        "{%- set system = messages[0]['content'] %}{%- set turns = messages[1:] %}",
        f"{{%- else %}}{{%- set system = {_text(style.default_system)} %}}{{%- set turns = messages %}}{{%- endif %}}",
        _shown(style.first_bos or (style.own_bos and style.own_bos + gap)),
        "" if inside else f"{{%- if system %}}{{{{- {system} }}}}{{%- endif %}}",
        _shown(style.opening),
        "{%- for m in turns %}",
        "{%- if m['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}",
        f"{{{{- raise_exception({_text(_ALTERNATE)}) }}}}{{%- endif %}}",
        "{%- if m['role'] == 'user' %}",
        f"{{%- if not loop.first %}}{_shown(again)}{{%- endif %}}" if again else "",
        _shown(before),
        _shown(between),
        question,
        _shown(behind),
        f"{{%- if not loop.last or add_generation_prompt %}}{_shown(style.ask)}{{%- endif %}}" if style.ask else "",
        "{%- else %}",
        f"{{{{- {answer} }}}}",
        "{%- endif %}",
        "{%- endfor %}",
    ]
    return "\n".join(filter(None, parts))


def _shown(text: str) -> str:
    """Returns the statement that writes a text; an empty text needs none."""
    return f"{{{{- {_text(text)} }}}}" if text else ""


def _joined(before: str, behind: str = "", variable: str = "") -> str:
    """Returns the Jinja expression that concatenates `before`, the variable's value and `behind`."""
    return " + ".join(filter(None, (before and _text(before), variable, behind and _text(behind))))


def _text(text: str) -> str:
    """Returns a text as a Jinja string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
