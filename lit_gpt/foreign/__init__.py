"""Runs code that comes with a checkpoint (tokenizers, chat templates) in a process of its own, within limits."""

from lit_gpt.foreign.remote import LimitError, Limits, RaisedError, Remote, start

__all__ = ["LimitError", "Limits", "RaisedError", "Remote", "start"]
