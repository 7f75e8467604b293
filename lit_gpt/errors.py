"""The exceptions that stand for a mistake the user can mend."""


class UserError(Exception):
    """Wrong input. The message is one line: what is wrong, with its value and place, and the way out.

    `lit_gpt.cli.run` prints it without a traceback, and likewise what the operating system says of a file or a disk;
    LIT_GPT_TRACEBACK=1 shows where it came from. Every other exception is a bug of ours and keeps its traceback.
    """


class CommandLineError(UserError):
    """Wrong input on the command line itself: a flag that there is not, or a value that is none."""
