"""Arguments of the server."""

from dataclasses import dataclass
from typing import Literal

from lit_gpt.args.require import require
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class ServeArgs:
    """Arguments of the server: where it listens, who may call it, and what a request may take."""

    host: str = "127.0.0.1"
    """Address to listen on: 127.0.0.1 is this machine alone, 0.0.0.0 every network that it is in."""
    port: int = 8000
    """Port to listen on; 0 takes a free one, which the line that is printed names."""
    api_key: str | None = None
    """Key that requests have to carry as Authorization: Bearer KEY; env:NAME reads it from an environment variable,
    which other users of the machine cannot see."""
    allow_origins: tuple[str, ...] = ()
    """Origins of web pages that may call, such as http://localhost:3000; the server's own page always may."""
    max_rows: int = 64
    """Most texts that are generated at once; others wait."""
    max_tokens: int | None = None
    """Tokens of all texts and kept prefixes in the KV cache; what fits into memory if not given."""
    speculate: Literal["ngram", "none"] | None = None
    """Guess several tokens of a text, all of which one pass checks: texts come sooner, and stay the same. ngram looks
    them up in the text itself; if not given, ngram on a CPU."""
    max_waiting: int = 1_024
    """Most texts that may wait; beyond it requests are refused with 503."""
    max_new_tokens: int = 1_024
    """Most tokens of an answer to a conversation that names no number."""
    max_seconds: float = 3_000
    """Seconds after which a request is given up; HELM's client waits as long."""
    max_body_mb: float = 32
    """Most megabytes of a request."""
    drain_seconds: float = 30
    """Seconds that running requests get to end after SIGTERM or Ctrl-C; a second one ends the server at once."""
    devices: int | None = None
    """GPUs of this machine, or processes on a CPU, each of which has a copy of the model and gets a part of the
    connections; the limits are those of each. 1, or as many as torchrun started, if not given."""

    def __post_init__(self) -> None:
        require("port", self.port, at_least=0, at_most=65_535)
        for name in ("max_rows", "max_new_tokens"):
            require(name, getattr(self, name), at_least=1)
        if self.devices is not None:
            require("devices", self.devices, at_least=1)
        require("max_waiting", self.max_waiting, at_least=0)
        require("drain_seconds", self.drain_seconds, at_least=0)
        for name in ("max_seconds", "max_body_mb"):
            require(name, getattr(self, name), above=0)
        if self.max_tokens is not None:
            require("max_tokens", self.max_tokens, at_least=2)
        for origin in self.allow_origins:
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not rest or "/" in rest:
                raise UserError(f"--allow_origins {origin} is no origin of a page, such as http://localhost:3000")
