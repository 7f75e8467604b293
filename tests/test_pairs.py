"""Cases that stand for all combinations of several axes hold every two values that can go together."""

from itertools import combinations, product

from pairs import in_pairs

AXES = ("abcdef", (1, 2, 3, 4), (None, {}), "xyz")


def _pairs(cases):
    return {((i, str(a)), (j, str(b))) for case in cases for (i, a), (j, b) in combinations(enumerate(case), 2)}


def test_any_two_values_meet_and_few_cases_do_it():
    cases = in_pairs(*AXES)
    assert _pairs(cases) == _pairs(product(*AXES)) and 24 <= len(cases) < 30 < len(list(product(*AXES)))
    assert cases == in_pairs(*AXES)


def test_what_is_not_allowed_has_no_case_and_what_is_allowed_keeps_its_own():
    def allowed(letter, number, *_):
        return letter != "a" or number == 4

    cases = in_pairs(*AXES, allowed=allowed)
    assert all(allowed(*case) for case in cases)
    assert _pairs(cases) == _pairs(case for case in product(*AXES) if allowed(*case))
