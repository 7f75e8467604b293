"""A prompt style as a template for Ollama, in the language of Go's text/template."""

import json

from lit_gpt.prompts.style import Style, around, filled


def go_of(style: Style) -> str:
    """Returns the Ollama template that renders messages as the style does.

    White space at the edges of texts may differ. A begin-of-sequence token that the tokenizer writes is left to Ollama,
    which follows the gguf file's setting.
    """
    before, behind = around(filled(style.question, eos=style.eos), "{prompt}")
    inside = "{system}" in before
    before, between = around(before, "{system}") if inside else (before, "")
    ahead, after = around(filled(style.system, eos=style.eos), "{system}")
    system = f"{{{{ if .System }}}}{_shown(ahead)}{{{{ .System }}}}{_shown(after)}{{{{ end }}}}"
    again = style.after + (style.bos if style.begins == "question" else "")
    parts = [
        "" if style.own_bos else _shown(style.first_bos),
        "" if inside else system,
        _shown(style.opening),
        "{{- $later := false }}{{- range .Messages }}",
        '{{- if eq .Role "user" }}',
        f"{{{{- if $later }}}}{_shown(again)}{{{{- end }}}}" if again else "",
        _shown(before),
        f"{{{{- if not $later }}}}{system.replace('.System', '$.System')}{{{{- end }}}}" if inside else "",
        _shown(between) + "{{ .Content }}" + _shown(behind + style.ask),
        "{{- $later = true }}",
        '{{- else if eq .Role "assistant" }}',
        _shown(style.lead) + "{{ .Content }}" + _shown(style.tail + (style.end or style.eos)),
        "{{- end }}{{- end }}",
    ]
    return "".join(filter(None, parts))


def _shown(text: str) -> str:
    """Returns the action that writes a text, as a quoted literal so that white space at its edges survives."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
