"""The files of FLAN's instruction data (https://huggingface.co/datasets/Muennighoff/flan), by subset."""

from lit_gpt.errors import UserError

_URL = "https://huggingface.co/datasets/Muennighoff/flan/resolve/main"
_SUFFIX = "_10templates"
_NAMES = """
aeslc ag_news_subset anli_r1 anli_r2 anli_r3 arc_challenge arc_easy bool_q cb cnn_dailymail cola common_gen copa coqa
cosmos_qa dart definite_pronoun_resolution drop e2e_nlg fix_punct gigaword glue_mrpc glue_qqp hellaswag imdb_reviews
math_dataset mnli_matched mnli_mismatched multi_news multirc natural_questions openbookqa opinion_abstracts_idebate
opinion_abstracts_rotten_tomatoes para_crawl_enes paws_wiki piqa qnli quac record rte samsum sentiment140 snli squad_v1
squad_v2 sst2 story_cloze stsb trec trivia_qa true_case web_nlg_en wic wiki_lingua_english_en wmt14_enfr
wmt16_translate_csen wmt16_translate_deen wmt16_translate_fien wmt16_translate_roen wmt16_translate_ruen
wmt16_translate_tren wnli word_segment wsc yelp_polarity_reviews
"""
SUBSETS = tuple(f"{name}{_SUFFIX}" for name in _NAMES.split())


def subset_files(subsets: str | None, split: str) -> list[tuple[str, str]]:
    """(address, file name) of each subset's `split` (train or test).

    Args:
        subsets: names separated by commas, with or without `_10templates`; None takes all 66.

    Raises:
        UserError: no subset of that name, or none at all.
    """
    names = SUBSETS
    if subsets is not None:
        names = tuple(n.strip().removesuffix(_SUFFIX) + _SUFFIX for n in subsets.split(",") if n.strip())
    if not names:
        raise UserError("--subsets names none; e.g. --subsets coqa,samsum")
    for name in names:
        if name not in SUBSETS:
            raise UserError(
                f"--subsets: FLAN has no {name.removesuffix(_SUFFIX)!r}; it has {', '.join(_NAMES.split())}"
            )
    return [(f"{_URL}/{split}/{name}_{split}.jsonl", f"{name}_{split}.jsonl") for name in names]
