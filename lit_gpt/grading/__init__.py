"""Checkers that say whether an answer is right: by its end, by what it equals, or by a program of the user's."""
