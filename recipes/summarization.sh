# For cnn_dm.sh and xsum.sh to source: an article in, its summary out.
. "$(dirname "${BASH_SOURCE[0]}")/pipeline.sh"

run_fetch() {
  local have=()
  [ -z "$text" ] || [ ! -d "$text/$folder" ] || have=(--from "$text/$folder")
  run python "$root/recipes/corpora/summaries.py" fetch "$corpus" "$work/raw" "${have[@]}"
}

run_prepare() {
  local part=()
  ! small || part=(--share --article-words 200 --size "valid=$small_examples,test=$small_examples")
  noted prepare.log python "$root/recipes/corpora/summaries.py" prepare "$corpus" "$work/raw" "$work/corpus" "${part[@]}"
}

# The references have <q> between their sentences. The hypotheses are split at punctuation.
run_score() {
  local published=()
  small || published=(--setting "$corpus-bart_large")
  noted scores.md elseq-score rouge "$work/test.hypothesis" "$work/corpus/test.reference" --sentence-separator '<q>' \
    "${published[@]}" --output "$work/scores.json"
}
