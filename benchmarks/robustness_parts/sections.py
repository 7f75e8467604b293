"""Names all sections of the campaign."""

from robustness_parts.campaign import Section
from robustness_parts.from_outside import sections as from_outside
from robustness_parts.kills import sections as kills
from robustness_parts.material import Material
from robustness_parts.of_ours import sections as of_ours
from robustness_parts.rows import sections as rows
from robustness_parts.texts import sections as texts


def sections_of(material: Material) -> list[Section]:
    """Returns all sections, in the order in which they run."""
    return [*from_outside(material), *texts(material), *of_ours(material), *rows(material), *kills(material)]
