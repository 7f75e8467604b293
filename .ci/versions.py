"""Prints the versions of Python and of the packages that a leg of CI tests."""

import platform
from importlib.metadata import version

PACKAGES = ("torch", "lightning", "transformers", "peft", "datasets", "tokenizers", "huggingface_hub", "jsonargparse")
PACKAGES += ("numpy", "bitsandbytes", "lm_eval")
print(", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)]))
