#!/usr/bin/env bash
# Train a German-English Transformer with stock fairseq on Multi30k until it translates, then show that kv and el give
# stock fairseq's hypotheses: beam 1, 4 and 5, with and without length penalty. About 30 minutes on 2 cores.
#
# Usage: recipes/multi30k.sh [--fresh] [--dry-run] [--help]
# Environment: ELSEQ_DATA: folder with multi30k/{train,val,test_2016_flickr}.{de,en}.gz
#              ELSEQ_WORK (default: multi30k_output in the checkout), EPOCHS (default: 10)
set -euo pipefail
. "$(dirname "$0")/stages.sh"
read_options "$@"
work=${ELSEQ_WORK:-$root/multi30k_output}
epochs=${EPOCHS:-10}
whole_numbers EPOCHS 1 "$epochs"
use_multi30k
begin

train() {
  shown=updates_done logged train fairseq-train "$work/data" --user-dir "$user_dir" --task translation --arch transformer \
    --encoder-layers 3 --decoder-layers 3 --encoder-embed-dim 256 --encoder-ffn-embed-dim 512 \
    --encoder-attention-heads 4 --decoder-attention-heads 4 --share-all-embeddings --dropout 0.2 \
    --optimizer adam --adam-betas '(0.9, 0.98)' --lr 3e-3 --lr-scheduler inverse_sqrt --warmup-updates 500 \
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --max-tokens 2048 --max-epoch "$epochs" \
    --save-dir "$work/checkpoints" --no-epoch-checkpoints --seed 1 --log-format simple --log-interval 100
}

updates_done() { sed -un '/train_inner\|valid on\|^elseq: error:/p'; }

generate() {
  local name=$1 mode=$2; shift 2
  logged "$name-$mode" fairseq-generate "$work/data" --user-dir "$user_dir" --task elseq_translation \
    --decode-attention "$mode" --path "$work/checkpoints/checkpoint_best.pt" --gen-subset test --max-tokens 4000 "$@" \
    --remove-bpe sentencepiece --no-progress-bar
}

stage unpack "Multi30k" unpack_multi30k
stage pieces "Sentencepiece" pieces --vocabulary-size 8000
stage binarize "fairseq-preprocess" binarize
resumed "$work/checkpoints" train "fairseq-train (stock)" train
names=()
for beam in 1 4 5; do
  for penalty in 1 0 2; do
    name=beam$beam-lenpen$penalty
    names+=("$name")
    for mode in stock kv el; do
      stage "$name-$mode" "fairseq-generate: beam $beam, length penalty $penalty, $mode" \
        generate "$name" "$mode" --beam $beam --lenpen $penalty
    done
  done
done
noted equality.md python -m elseq.reports.equality "$work" "${names[@]}"
