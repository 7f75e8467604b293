"""What a benchmark prints, which may be kept in a file, too."""

from pathlib import Path


class Say:
    """Prints lines, and adds them to a file if there is one."""

    def __init__(self, out: Path | None) -> None:
        self.out = out

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        if self.out:
            with self.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
