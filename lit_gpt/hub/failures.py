"""Turns failures of the hub, the network and the disk into one line that says what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from lit_gpt.errors import UserError
from lit_gpt.families import MODELS


@contextmanager
def one_line_errors(repo_id: str, revision: str | None, token: str | None, folder: Path) -> Iterator[None]:
    """Turns errors of the client and the disk into a one-line UserError that says what to do.

    Raises:
        UserError: the hub refused, or the network or the disk failed. Errors without an explanation pass through.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        message = _explain_refusal(e, repo_id, revision, token) or _explain_failure(e, folder)
        if message is None:
            raise
        raise UserError(message) from e


def _explain_refusal(error: Exception, repo_id: str, revision: str | None, token: str | None) -> str | None:
    """Returns what to do about the hub's refusal; None if the hub did not answer at all."""
    from huggingface_hub import constants, errors, get_token

    if not isinstance(error, errors.HfHubHTTPError):
        return None
    page = f"https://huggingface.co/{repo_id}"
    has_token = bool(token or get_token())
    status = getattr(error.response, "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        if has_token:
            return (
                f"{repo_id} is gated and your token has no access to it; request it at {page} with the token's account"
            )
        return (
            f"{repo_id} is gated: request access at {page}, make a token at https://huggingface.co/settings/tokens, "
            "and pass it with --token or HF_TOKEN"
        )
    # the hub answers 401 to strangers who ask for what does not exist
    if isinstance(error, errors.RepositoryNotFoundError) or (status == 401 and not has_token):
        private = "" if has_token else " (or it is private and needs --token)"
        return f"{constants.ENDPOINT} has no model {repo_id!r}{private}; {_close_matches(repo_id)}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r}; {page}/tree/main lists its branches and tags"
    if status == 401:
        return "the hub refused your token; make another at https://huggingface.co/settings/tokens"
    note = (error.server_message or "no reason given").splitlines()[0][:200]
    if status == 403:
        return f"the hub refused {repo_id} ({note}); check that your token may read it"
    return f"{constants.ENDPOINT} answered {status} ({note}); run the same command again later, it goes on from there"


def _explain_failure(error: Exception, folder: Path) -> str | None:
    """Returns what to do about a failure of the network or the disk; None if it is neither."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to download; unset it"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {folder} is full; free some and run the same command again, it goes on where it stopped"
    if _is_from_http(error):
        what = _reason(error)
    elif isinstance(error, OSError) and "Consistency check" in str(error):  # the client has no type for it
        what = "it ended before the file did"
    else:
        return None
    return (
        f"the connection to {constants.ENDPOINT} failed ({what}); "
        "check the network and run the same command again, it goes on where it stopped"
    )


def _is_from_http(error: BaseException | None) -> bool:
    """Returns whether the client's HTTP library raised the error.

    That library is `requests` up to huggingface_hub 0.36, later `httpx`, then `httpx2`.
    """
    while error is not None:
        if {cls.__module__.partition(".")[0] for cls in type(error).__mro__} & {"requests", "httpx", "httpx2"}:
            return True
        error = error.__cause__
    return False


def _reason(error: BaseException) -> str:
    """Returns the operating system's message at the root of an error.

    The client's own message is never shown, since it may quote a header.
    """
    while cause := error.__cause__ or error.__context__:
        error = cause
    return getattr(error, "strerror", None) or type(error).__name__


def _close_matches(repo_id: str) -> str:
    """Returns a hint that names known models with a name similar to `repo_id`."""
    known = {short.lower(): fields["hf_repo"] for short, fields in MODELS.items()}
    close = get_close_matches(repo_id.rpartition("/")[2].lower(), known, n=4)
    if not close:
        return "python scripts/download.py lists the known ones"
    return f"close matches: {', '.join(known[c] for c in close)}"
