"""Opens a server's doors: whoever is let in is answered by the models, as soon as these are loaded."""

from collections.abc import Collection
from typing import Any

from lit_gpt.args import ServeArgs
from lit_gpt.generation.thread import EngineThread
from lit_gpt.serve.admission import Admission
from lit_gpt.serve.app import State
from lit_gpt.serve.load import Loaded
from lit_gpt.serve.metrics import Metrics
from lit_gpt.serve.service import Limits, Service

_BODIES = 8
"""Bodies of the largest size that are held at once."""


class Doors:
    """What stands between requests and models, closed until `open` is called.

    Args:
        key: key that requests have to carry; None for none.
    """

    def __init__(self, args: ServeArgs, key: str | None = None) -> None:
        self.args, self.key = args, key
        self.most_bytes = int(args.max_body_mb * 1e6)
        self.admission = Admission(args.max_rows + args.max_waiting, _BODIES * self.most_bytes)
        self.metrics = Metrics(self.admission)
        self.state = State(self.admission, self.metrics)
        self.thread: EngineThread | None = None

    def guard(self, hosts: Collection[str] | None) -> dict[str, Any]:
        """Returns the arguments of `Guard` besides the application.

        Args:
            hosts: names that the Host header may have; None for any.
        """
        return {
            "admission": self.admission,
            "metrics": self.metrics,
            "hosts": hosts,
            "origins": self.args.allow_origins,
            "api_key": self.key,
            "most_bytes": self.most_bytes,
        }

    def open(self, loaded: Loaded) -> Service:
        """Begins to answer with these models, and returns the service."""
        self.thread = EngineThread(loaded.engine)
        self.thread.__enter__()
        self.metrics.stats = loaded.engine.stats
        self.state.service = Service(
            self.thread,
            loaded.tokenizer,
            loaded.models,
            block_size=loaded.block_size,
            limits=Limits(self.args.max_seconds, self.args.max_new_tokens),
            admission=self.admission,
            metrics=self.metrics,
        )
        if self.admission.state == "loading":
            self.admission.state = "open"
        return self.state.service

    def stop(self) -> None:
        """Stops the engine, if it was started."""
        if self.thread is not None:
            self.thread.stop(0)
