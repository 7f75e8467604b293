"""Arguments of text generation."""

from dataclasses import dataclass

from lit_gpt.args.require import require


@dataclass(frozen=True)
class SamplingArgs:
    """Arguments of sampling."""

    max_new_tokens: int = 50
    """Most tokens to generate; the end-of-sequence token ends a text earlier."""
    top_k: int | None = 200
    """Sample from the k most likely tokens only."""
    temperature: float = 0.8
    """Temperature, which divides the logits; 0 is greedy decoding."""
    seed: int = 1234
    """Seed of sampling."""

    def __post_init__(self) -> None:
        require("max_new_tokens", self.max_new_tokens, at_least=1)
        require("temperature", self.temperature, at_least=0)
        if self.top_k is not None:
            require("top_k", self.top_k, at_least=1)
