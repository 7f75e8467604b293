"""Words that HELM's perturbations change: its own list of contractions, and pronouns.

Other lists than those by which `data/curate/augment` perturbs training data, since what is drawn depends on every word.
"""

_NOT = "are could did does do had has have might must need ought shall should was were would"
_SHORT = {"shall not": "shan't"}
_WHO = {  # who -> what may follow, in the order in which it is looked for
    "he": "would,'d|would have,'d've|will,'ll|is,'s",
    "how": "did,'d|do you,'d'y|will,'ll|is,'s",
    "i": "would,'d|will,'ll|am,'m|have,'ve",
    "it": "would,'d|will,'ll|is,'s",
    "she": "would,'d|will,'ll|is,'s",
    "that": "would,'d|is,'s",
    "there": "would,'d|is,'s",
    "they": "would,'d|will,'ll|are,'re|have,'ve",
    "we": "would,'d|will,'ll|are,'re|have,'ve",
    "what": "are,'re|is,'s",
    "when": "is,'s",
    "where": "did,'d|is,'s|have,'ve",
    "who": "will,'ll|is,'s|have,'ve",
    "why": "is,'s",
    "you": "would,'d|would have,'d've|will,'ll|are,'re|have,'ve",
}
PRONOUNS = (("he", "she"), ("him", "her"), ("his", "her"), ("his", "hers"), ("himself", "herself"))
"""A pronoun and what is put in its place, one after the other."""


def _contractions() -> dict[str, str]:
    """Returns what is contracted, in small letters; where two begin alike, the first one is taken."""
    found = {"is not": "isn't", "cannot": "can't", "cannot have": "can't've", "will not": "won't", "madam": "ma'am"}
    found |= {f"{verb} not": _SHORT.get(f"{verb} not", f"{verb}n't") for verb in _NOT.split()}
    found |= {f"{verb} have": f"{verb}'ve" for verb in ("could", "might", "must", "should", "would")}
    for who, forms in _WHO.items():
        for form in forms.split("|"):
            what, ending = form.split(",")
            found[f"{who} {what}"] = who + ending
    return found


CONTRACTIONS = _contractions()
"""Two words -> what is said for them."""
