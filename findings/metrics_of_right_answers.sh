#!/usr/bin/env bash
# Answers equal to their references, scored by BLEU of sacrebleu and by ROUGE of rouge_score, which lm-eval, HELM and
# others use.
#
# One would guess that a model whose every answer is the reference has the highest score: 100 and 1.
# What happens: BLEU of a corpus multiplies what 1 to 4 words in a row have in common, and if no answer has 4, it is 0: a
# model that gives each short answer right has BLEU 0.0 (sentence_bleu gives 100, as it leaves out lengths that do not
# occur). rouge_score drops all but a to z and digits: a text in Russian, Greek or Chinese has no words for it, and 0 in
# common with itself, while in a text with one Latin word only that one counts.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet sacrebleu==2.6.0 rouge_score==0.1.2 nltk==3.10.4
"$work/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

answers = ["Paris", "the Po", "in 1969"]
corpus = sacrebleu.corpus_bleu(answers, [answers]).score
sentences = [sacrebleu.sentence_bleu(a, [a]).score for a in answers]
print(f"sacrebleu {version('sacrebleu')}: {answers} against themselves: corpus {corpus}, one by one {sentences}")
scorer = RougeScorer(["rougeL"])
pairs = [("The capital is Moscow", "The capital is Moscow"), ("Столица — Москва", "Столица — Москва")]
pairs += [("Η πρωτεύουσα", "Η πρωτεύουσα"), ("首都是北京", "首都是北京"), ("Python лучше", "Python хуже")]
found = [scorer.score(*pair)["rougeL"].fmeasure for pair in pairs]
for pair, score in zip(pairs, found):
    print(f"rouge_score {version('rouge_score')}: {pair[0]!r} against {pair[1]!r}: ROUGE-L {score}")
assert corpus == 0 and min(sentences) > 99, "the behaviour has changed"
assert found == [1, 0, 0, 0, 1], "the behaviour has changed"
PYTHON
