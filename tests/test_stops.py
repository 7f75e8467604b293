"""A text ends at its stop string however it is cut into pieces, and shows nothing of it early."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.generation.stops import StopStrings

WORDS = st.text("ab\n", min_size=1, max_size=4)


def ended(text, stops, keeps):
    """Character by character: the text up to the first stop string that is complete."""
    for end in range(1, len(text) + 1):
        found = [s for s in stops if text[:end].endswith(s)]
        if found:
            stop = max(found, key=len)
            return text[: end if keeps else end - len(stop)], stop
    return text, None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(WORDS, max_size=6), st.lists(WORDS, max_size=3), st.booleans())
def test_pieces_make_no_difference(pieces, stops, keeps):
    want, stop = ended("".join(pieces), stops, keeps)
    matcher, shown = StopStrings(stops, keeps), ""
    for piece in pieces:
        text, found = matcher.push(piece)
        shown += text
        assert want.startswith(shown)
        if found is not None:
            break
    else:
        assert stop is None
        shown, found = shown + matcher.flush(), None
    assert (shown, found) == (want, stop)


def test_what_may_become_a_stop_string_is_held_back_and_shown_if_it_does_not():
    matcher = StopStrings(["\n\nQ:"])
    assert matcher.push("yes\n") == ("yes", None)
    assert matcher.push("\n") == ("", None)
    assert matcher.push("\nA") == ("\n\n\nA", None)
    assert matcher.push("\n\nQ") == ("", None)
    assert matcher.flush() == "\n\nQ"


def test_a_stop_string_that_may_not_end_the_text_yet_is_shown_and_one_that_it_begins_may_end_it():
    matcher = StopStrings(["ab"])
    assert matcher.push("xab", may_end=False) == ("xab", None)
    assert matcher.push("a", may_end=False) == ("", None)
    assert matcher.push("bc") == ("", "ab")
