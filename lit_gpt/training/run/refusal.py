"""What is said of a run that cannot be resumed with changed arguments, or only if the user means it."""

from collections.abc import Iterable, Mapping

from lit_gpt.args.methods import LORA_TARGETS

_RESHAPING = ("method", "lora_r", "lora_dora", "lora_init", "adapter_prompt_length", "adapter_start_layer")
_RESHAPING += tuple(f"lora_{part}" for part in LORA_TARGETS)
"""Arguments that decide which tensors train, and their shapes."""
_REGROUPING = ("optimizer", "lora_plus_ratio")
"""Arguments that decide the state of the optimizer."""


def impossible(changes: Iterable[str]) -> list[str]:
    """Returns the names of those changes under which a checkpoint cannot be loaded."""
    return [name for name in changes if name in (*_RESHAPING, *_REGROUPING)]


def refusal(changes: Mapping[str, str]) -> str:
    """Returns one line about changes that would make it another run, with a way out that works.

    Args:
        changes: name of what changed -> a sentence that says how.
    """
    message = f"this would be another run: {'; '.join(changes.values())}"
    stuck = impossible(changes)
    if not stuck:
        return f"{message}; --allow_changes true goes on all the same"
    flags = ", ".join(f"--{name}" for name in stuck)
    what = "the weights" if any(name in _RESHAPING for name in stuck) else "the optimizer's state"
    return (
        f"{message}; {what} of its checkpoints would not fit, not even with --allow_changes true: leave {flags} as "
        "before, or start a new run with another --out_dir"
    )
