"""A function's signature as a command line: flat flags, `--config file.yaml`, `--print_config`, errors in one line."""

from lit_gpt.cli.start import parse, run

__all__ = ["parse", "run"]
