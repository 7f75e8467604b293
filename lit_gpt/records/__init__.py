"""What files of names with values hold: JSON and YAML read within limits, and values checked by type.

Anything can be in a file that comes from outside, and in one of ours that was damaged. Whatever it is, it is read, or
refused in one line that names the file and the place, within seconds and in little memory.
"""

from lit_gpt.records.json_text import MAX_BYTES, parse_json, parse_object, read_json, read_object
from lit_gpt.records.values import fits, is_file_name, misfit, require_types
from lit_gpt.records.yaml_text import TooLargeError, compose_yaml, parse_yaml, read_yaml

__all__ = ["MAX_BYTES", "TooLargeError", "compose_yaml", "fits", "misfit", "parse_json", "parse_object", "read_json"]
__all__ += ["is_file_name", "parse_yaml", "read_object", "read_yaml", "require_types"]
