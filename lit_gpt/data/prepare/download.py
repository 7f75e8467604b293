"""Finds the file of a data set, or downloads it from its address, whole or not at all."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from lit_gpt.args.data import DatasetArgs
from lit_gpt.data.prepare.arrow import fetched_dataset
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class _Published:
    """Size and checksum of a published file."""

    n_bytes: int
    sha256: str


PUBLISHED = {
    "databricks-dolly-15k.jsonl": _Published(
        13_085_339, "2df9083338b4abd6bceb5635764dab5d833b393b55759dffb0959b6fcbf794ec"
    ),
    "2023-04-12_oasst_ready.trees.jsonl.gz": _Published(
        34_145_252, "2a9a8fd343e9b28e04a895a669d3253f82d93e9c174d440199ae19d5fafbdff7"
    ),
}
"""Last part of the address -> size and checksum, of the published files that are verified after a download."""

_FLAN_URL = "https://huggingface.co/datasets/Muennighoff/flan/resolve/main"
_FLAN_SUFFIX = "_10templates"
_FLAN_NAMES = """
aeslc ag_news_subset anli_r1 anli_r2 anli_r3 arc_challenge arc_easy bool_q cb cnn_dailymail cola common_gen copa coqa
cosmos_qa dart definite_pronoun_resolution drop e2e_nlg fix_punct gigaword glue_mrpc glue_qqp hellaswag imdb_reviews
math_dataset mnli_matched mnli_mismatched multi_news multirc natural_questions openbookqa opinion_abstracts_idebate
opinion_abstracts_rotten_tomatoes para_crawl_enes paws_wiki piqa qnli quac record rte samsum sentiment140 snli squad_v1
squad_v2 sst2 story_cloze stsb trec trivia_qa true_case web_nlg_en wic wiki_lingua_english_en wmt14_enfr
wmt16_translate_csen wmt16_translate_deen wmt16_translate_fien wmt16_translate_roen wmt16_translate_ruen
wmt16_translate_tren wnli word_segment wsc yelp_polarity_reviews
"""
FLAN_SUBSETS = tuple(f"{name}{_FLAN_SUFFIX}" for name in _FLAN_NAMES.split())
"""Names of FLAN's subsets; https://huggingface.co/datasets/Muennighoff/flan."""

_ID = re.compile(r"[\w.-]+/[\w.-]*\w(?<!\.json)(?<!\.jsonl)(?<!\.csv)(?<!\.parquet)")
"""Matches what may be the id of a data set of the hub, but not the path of a file."""


def locate(data_file: Path | None, url: str, name: str, folder: Path, access_token: str | None = None) -> Path:
    """Returns the file to read: `data_file`, or `folder / name`, downloaded from `url` if it is not there yet.

    Raises:
        UserError: there is no `data_file`, or the download failed; no partial file is left under the name.
    """
    if data_file is not None:
        if not data_file.is_file():
            raise UserError(f"there is no file {data_file}")
        return data_file
    path = folder / name
    if not path.is_file():
        _download(url, path, access_token)
    return path


def _fetched(path: str, folder: Path) -> Path:
    """Returns a local file or folder as it is; an address that begins with http is downloaded to `folder` first.

    Raises:
        UserError: there is no such file, or the download failed.
    """
    if not path.startswith(("http://", "https://")):
        if not Path(path).exists():
            hint = f"; a data set of the hub is read with --dataset {path}" if _ID.fullmatch(path) else ""
            raise UserError(f"there is no file {path}{hint}")
        return Path(path)
    return locate(None, path, path.split("?")[0].rstrip("/").rsplit("/", 1)[-1], folder)


def _download(url: str, path: Path, access_token: str | None = None) -> None:
    """Downloads `url` to `path`, whole or not at all; raises UserError if it fails."""
    import requests

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    headers = {"Authorization": f"Bearer {access_token}"} if access_token else {}
    print(f"Downloading {url}")
    try:
        with requests.get(url, stream=True, timeout=60, headers=headers) as answer, open(part, "wb") as file:
            answer.raise_for_status()
            if answer.headers.get("Content-Type", "").startswith("text/html"):
                raise UserError(f"{url} answers with a web page instead of data; pass the path of a local copy")
            for chunk in answer.iter_content(1 << 20):
                file.write(chunk)
            expected = answer.headers.get("Content-Length")
            if expected and "Content-Encoding" not in answer.headers and file.tell() != int(expected):
                raise UserError(f"{url} sent {file.tell():,} of {int(expected):,} bytes; try again")
        verify(part, url)
        part.replace(path)
    except requests.RequestException as e:
        status = e.response.status_code if e.response is not None else None
        reason = type(e).__name__ if status is None else f"HTTP {status}"
        if status in (401, 403):
            reason += ": it asks for an account that may read it; set HF_TOKEN or pass --access_token"
        raise UserError(f"{url} could not be downloaded ({reason}); pass the path of a local copy") from e
    finally:
        part.unlink(missing_ok=True)


def verify(path: Path, url: str) -> None:
    """Checks size and checksum of a file downloaded from `url`, if they are known; raises UserError if they differ."""
    known = PUBLISHED.get(url.split("?")[0].rsplit("/", 1)[-1])
    if known is None:
        return
    if (size := path.stat().st_size) != known.n_bytes:
        raise UserError(f"{url} gave {size:,} bytes, expected {known.n_bytes:,}; pass the path of a local copy")
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != known.sha256:
        raise UserError(
            f"{url} gave another file than the published one (SHA-256 {digest.hexdigest()[:16]}..., expected "
            f"{known.sha256[:16]}...); if you want it all the same, pass the path of a local copy"
        )


def fetched_rows(path: str | None, validation: Path | None, hub: DatasetArgs, folder: Path) -> tuple[Path, Path | None]:
    """Returns the files to train and to validate on: the given ones, or those of a data set of the hub.

    Raises:
        UserError: neither or both are given, or they are not there.
    """
    if path is not None and hub.dataset is None:
        return _fetched(path, folder), validation
    if path is not None or hub.dataset is None:
        raise UserError("--json_path names a file of rows, --dataset a data set of the hub; pass one of them")
    if hub.validation_split and validation is not None:
        raise UserError("--validation_split and --validation_file contradict each other; pass one of them")
    splits = (hub.split, *((hub.validation_split,) if hub.validation_split else ()))
    found = [fetched_dataset(hub.dataset, hub.dataset_config, split, folder) for split in splits]
    return found[0], found[1] if len(found) > 1 else validation


def flan_files(subsets: str | None, split: str) -> list[tuple[str, str]]:
    """Returns (address, file name) of the `split` (train or test) of each subset of FLAN.

    Args:
        subsets: names separated by commas, with or without `_10templates`; None takes all 66.

    Raises:
        UserError: no subset of that name, or none at all.
    """
    names = FLAN_SUBSETS
    if subsets is not None:
        names = tuple(n.strip().removesuffix(_FLAN_SUFFIX) + _FLAN_SUFFIX for n in subsets.split(",") if n.strip())
    if not names:
        raise UserError("--subsets names none; e.g. --subsets coqa,samsum")
    for name in names:
        if name not in FLAN_SUBSETS:
            raise UserError(
                f"--subsets: FLAN has no {name.removesuffix(_FLAN_SUFFIX)!r}; it has {', '.join(_FLAN_NAMES.split())}"
            )
    return [(f"{_FLAN_URL}/{split}/{name}_{split}.jsonl", f"{name}_{split}.jsonl") for name in names]
