"""The exceptions that stand for a mistake the user can fix."""


class UserError(Exception):
    """Wrong input. The message is one line: what is wrong, with its value and location, and how to fix it.

    `lit_gpt.cli.run` prints it without a traceback, as it does the operating system's errors about files and disks;
    LIT_GPT_TRACEBACK=1 shows where it came from. Every other exception is a bug of ours and keeps its traceback.
    """


class CommandLineError(UserError):
    """Wrong input on the command line itself: an unknown flag, or a value of another type."""


class DiskError(UserError):
    """A file that could not be written, since its disk is full or fails; what was there before stays."""
