#!/usr/bin/env bash
# Question generation on SQuAD v1.1, split as by Du et al. 2017: "answer [SEP] paragraph" in, the question out. From the
# public files to BLEU-4 and times.
#
# Usage: recipes/squad_qg.sh [--from STAGE] [--to STAGE] [--dry-run] [--fresh] [--help]    (docs/recipes/squad_qg.md)
set -euo pipefail
corpus=squad_qg folder=squad models="transformer transformer_270m bart_base bart_large"
. "$(dirname "$0")/pipeline.sh"

# Beam search of ProphetNet (2001.04063), as its authors published it.
beam=5 lenpen=1.5 min_len=1 max_len=50 no_repeat_ngram=3
bart_updates=15000 transformer_updates=40000
if [ "$MODEL" = transformer ]; then small_updates=400 small_examples=1000; fi
vocabulary=$(published_or_small 16000 8000)
[ "$MODEL" != transformer_270m ] || vocabulary=30522 # BERT's, which ProphetNet has
pieces_more=(--symbol '[SEP]')
# BLEU-4 of the validation set, greedy, for the learning curve. GPT-2's pieces are no words that BLEU could count.
is_bart || training_more=(--eval-bleu --eval-bleu-args '{"beam": 1, "max_len_b": 50}' --eval-bleu-remove-bpe sentencepiece)

run_fetch() {
  local have=()
  [ -z "$text" ] || [ ! -d "$text/$folder" ] || have=(--from "$text/$folder")
  run python "$root/recipes/corpora/squad_questions.py" fetch "$work/raw" "${have[@]}"
}

run_prepare() {
  local part=()
  ! small || part=(--paragraph-words 40 --size "valid=$((small_examples / 2)),test=$small_examples")
  noted prepare.log python "$root/recipes/corpora/squad_questions.py" prepare "$work/raw" "$work/corpus" "${part[@]}"
}

# Questions about the same answer in the same paragraph are references of one example, as Du et al. put them together.
run_score() {
  local published=()
  small || published=(--setting squad_qg-prophetnet_large)
  noted scores.md elseq-score qg "$work/test.hypothesis" "$work/corpus/test.target" --sources "$work/corpus/test.source" \
    "${published[@]}" --output "$work/scores.json" &&
    noted squad_qg.md python -m elseq.reports.learning_curve "$work/train.log" --scores "$work/scores.json" \
      --curves "$work/squad_qg.png"
}

run_stages "$@"; exit # on one line: a change of this file while it runs does no harm
