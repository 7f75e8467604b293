"""The oldest versions that pyproject.toml admits are those that `make smoke-oldest` tests."""

import re
import sys

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest depends on there


@pytest.mark.smoke
def test_every_floor_is_the_version_that_is_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    requirements = [Requirement(line) for part in (project["dependencies"], *extras) for line in part]
    floors = [
        (canonicalize_name(requirement.name), Version(specifier.version))
        for requirement in requirements
        if requirement.name != project["name"]
        for specifier in requirement.specifier
        if specifier.operator == ">="
    ]
    assert len(floors) == sum(requirement.name != project["name"] for requirement in requirements), "one has no floor"
    oldest = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^([^#\s=]+)==(\S+)", oldest, re.MULTILINE)
    tested = {canonicalize_name(name): Version(version) for name, version in pins}
    assert {(name, version) for name, version in floors if tested.get(name) != version} == set()
