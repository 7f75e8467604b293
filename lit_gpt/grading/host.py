"""Runs as a process of its own: imports a checker's file and answers each line [prompt, answer, expected] with a score.

It imports nothing of ours, so that it starts in an instant, and what the file prints does not get among its answers.
"""

import json
import math
import os
import runpy
import sys


def _main() -> None:
    """Answers the lines of standard input until it ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    lines = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def reply(value: object) -> None:
        out.write(json.dumps(value) + "\n")
        out.flush()

    path, n_bytes = sys.argv[1], int(sys.argv[2])
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # a system without such limits
    try:
        score = runpy.run_path(path)["score"]
    except KeyError:
        reply({"error": "it has no function score(prompt, answer, expected)"})
        return
    except BaseException as e:
        reply({"error": f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}"})
        return
    reply({"ready": True})
    for line in lines:
        try:
            value = float(score(*json.loads(line)))
            reply({"score": value if math.isfinite(value) else 0.0})
        except (SystemExit, KeyboardInterrupt):
            return
        except BaseException:
            reply({"score": 0.0})


if __name__ == "__main__":
    _main()
