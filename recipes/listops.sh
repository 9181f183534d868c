#!/usr/bin/env bash
# ListOps of the Long Range Arena (2011.04006), full against top-k attention (2106.06899): two Transformers, trained with
# the same updates, seed and order of the data, evaluate nested operations on digits. Ends with a table (listops.md) of
# their accuracy, of what can be had without following the structure of an expression, and of the difference with its
# confidence interval; and curves (listops.png). About 20 minutes on 2 cores.
#
# Usage: recipes/listops.sh [--fresh] [--dry-run] [--help]
# Environment: LENGTHS: short (default): 20 to 100 tokens, which two cores learn from
#                       published: 500 to 2,000 tokens, the Arena's, for a GPU
#              TOP_K (default: 8; published: 128), UPDATES (default: 2000; published: 5000), SEED (default: 1)
#              ELSEQ_WORK (default: listops_output in the checkout, listops_published_output for the published lengths)
set -euo pipefail
. "$(dirname "$0")/stages.sh"
read_options "$@"
case ${LENGTHS:-short} in
  short)
    work=${ELSEQ_WORK:-$root/listops_output} top_k=${TOP_K:-8} updates=${UPDATES:-2000}
    expressions="--min-length 20 --max-length 100 --max-depth 3 --train-size 100000 --valid-size 1000 --test-size 10000"
    model="--encoder-layers 4 --encoder-embed-dim 128 --encoder-ffn-embed-dim 256 --encoder-attention-heads 8"
    batches="--max-tokens 3000 --lr 1e-3" interval=100
    ;;
  published)
    work=${ELSEQ_WORK:-$root/listops_published_output} top_k=${TOP_K:-128} updates=${UPDATES:-5000}
    expressions=
    model="--encoder-layers 6 --encoder-embed-dim 512 --encoder-ffn-embed-dim 2048 --encoder-attention-heads 8"
    batches="--max-tokens 32000 --lr 5e-4" interval=500
    ;;
  *) refuse "LENGTHS is $LENGTHS; choose short or published" ;;
esac
seed=${SEED:-1}
whole_numbers TOP_K 1 "$top_k"
whole_numbers UPDATES 20 "$updates" # fewer leave nothing in the log for the curves
whole_numbers SEED 0 "$seed"
begin

# The tokens of an expression are the pieces that the model reads.
generate() { run python "$root/recipes/corpora/listops.py" "$work/pieces" $expressions; }

# train NAME TOP_K: 0 keeps all scores.
train() {
  run mkdir -p "$work/$1" &&
    logged "$1/train" fairseq-train "$work/data" --user-dir "$user_dir" --task elseq_translation \
      --arch elseq_transformer $model --decoder-layers 1 --share-all-embeddings \
      --encoder-normalize-before --decoder-normalize-before --attention-top-k "$2" --max-source-positions 2048 --dropout 0.0 \
      --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1 --lr-scheduler polynomial_decay \
      --warmup-updates $((updates / 10)) --total-num-update "$updates" --max-update "$updates" $batches \
      --criterion label_smoothed_cross_entropy --label-smoothing 0 --validate-interval-updates "$interval" \
      --save-dir "$work/$1" --no-epoch-checkpoints --seed "$seed" --log-format simple --log-interval 20
}

evaluate() {
  logged "$1/test" fairseq-generate "$work/data" --user-dir "$user_dir" --task elseq_translation --max-source-positions 2048 \
    --path "$work/$1/checkpoint_best.pt" --gen-subset test --beam 1 --max-len-b 1 --max-tokens 32000 \
    --no-progress-bar
}

stage generate "Expressions" generate
stage binarize "fairseq-preprocess" binarize
anew "$work/full" train-full "Full attention" train full 0
anew "$work/top-$top_k" "train-top-$top_k" "Top-k attention: $top_k scores of each query" train "top-$top_k" "$top_k"
for name in full "top-$top_k"; do
  stage "evaluate-$name" "fairseq-generate: $name" evaluate "$name"
done
noted listops.md python -m elseq.reports.listops "$work/pieces" "$work/full" "$work/top-$top_k" \
  --curves "$work/listops.png"
