"""The one exception that stands for a mistake the user can mend."""


class UserError(ValueError):
    """Wrong input. The message is one line: what is wrong, with its value and place, and the way out.

    `lit_gpt.cli.run` prints it without a traceback; every other exception is a bug of ours and keeps its traceback.
    """
