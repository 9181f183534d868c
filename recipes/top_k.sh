#!/usr/bin/env bash
# Top-k (2106.06899) in a model that was trained without it: how much of its quality is left when each query keeps its k
# largest scores only (everywhere, and in the encoder, the decoder or across alone), or each token the k most activated
# units of a feed-forward layer; and what a short training with a small k brings back. Ends with tables (top_k.md) of loss
# and sacreBLEU against k, the smallest k within 1% of the model as it was, and a plot (top_k.png). About 20 minutes on 2
# cores.
#
# Usage: recipes/top_k.sh [--fresh] [--dry-run] [--help]      after recipes/multi30k.sh, whose model this takes
# Environment: CHECKPOINT, DATA, REFERENCES (default: the model, the binarized data and test.target of multi30k_output)
#              TOP_K (default: 1 2 4 ... 256), FFN_TOP_K (default: 8 16 ... 256)
#              GENERATE_OPTIONS (default: --beam 4 --max-len-a 1.2 --max-len-b 10 --max-tokens 4000
#              --remove-bpe sentencepiece; a bound on the length, or a few endless repetitions outweigh all else)
#              SHARDS (default: 1; 4 takes a quarter of the test set)
#              FINETUNE_TOP_K (one of TOP_K; default: 2), FINETUNE_UPDATES (default: 200; 0: none), LR (default: 1e-3)
#              MODEL_OPTIONS (default: the architecture of the model of recipes/multi30k.sh)
#              ELSEQ_WORK (default: top_k_output in the checkout)
set -euo pipefail
. "$(dirname "$0")/stages.sh"
read_options "$@"
work=${ELSEQ_WORK:-$root/top_k_output}
checkpoint=${CHECKPOINT:-$root/multi30k_output/checkpoints/checkpoint_best.pt}
data=${DATA:-$root/multi30k_output/data}
references=${REFERENCES:-$root/multi30k_output/corpus/test.target}
top_ks=${TOP_K:-1 2 4 8 16 32 64 128 256}
ffn_top_ks=${FFN_TOP_K:-8 16 32 64 128 256}
options=${GENERATE_OPTIONS:---beam 4 --max-len-a 1.2 --max-len-b 10 --max-tokens 4000 --remove-bpe sentencepiece}
tuned_k=${FINETUNE_TOP_K:-2}
updates=${FINETUNE_UPDATES:-200}
rate=${LR:-1e-3}
architecture=${MODEL_OPTIONS:---encoder-layers 3 --decoder-layers 3 --encoder-embed-dim 256 --encoder-ffn-embed-dim 512
  --encoder-attention-heads 4 --decoder-attention-heads 4 --share-all-embeddings --dropout 0.2}
whole_numbers TOP_K 1 $top_ks
whole_numbers FFN_TOP_K 1 $ffn_top_ks
whole_numbers SHARDS 1 "${SHARDS:-1}"
whole_numbers FINETUNE_UPDATES 0 "$updates"
positive LR "$rate"
options+=" --num-shards ${SHARDS:-1}"
for file in "$checkpoint" "$data" "$references"; do
  [ -e "$file" ] || refuse "$file is missing; run recipes/multi30k.sh, or set CHECKPOINT, DATA and REFERENCES"
done
if [ "$updates" -gt 0 ] && [[ " $top_ks " != *" $tuned_k "* ]]; then
  refuse "FINETUNE_TOP_K is $tuned_k; give one of TOP_K, which is $top_ks, or FINETUNE_UPDATES=0"
fi
begin
inputs=$(cksum "$checkpoint")

# translate NAME CHECKPOINT [OPTION...]
translate() {
  local name=$1 model=$2; shift 2
  logged "$name" fairseq-generate "$data" --user-dir "$user_dir" --task elseq_translation --path "$model" \
    --gen-subset test $options --no-progress-bar "$@"
}

# score NAME CHECKPOINT [OPTION...]: of the references.
score() { translate "$1-score" "${@:2}" --score-reference; }

# both NAME TITLE CHECKPOINT [OPTION...]
both() {
  local name=$1 title=$2; shift 2
  stage "$name-score" "$title: loss" score "$name" "$@"
  stage "$name" "$title: translation" translate "$name" "$@"
}

# finetune NAME TOP_K: 0 keeps all scores. Adam's moments begin anew for both.
finetune() {
  run rm -rf "$work/$1" && run mkdir -p "$work/$1" &&
    logged "$1/train" fairseq-train "$data" --user-dir "$user_dir" --task elseq_translation \
      --arch elseq_transformer $architecture --attention-top-k "$2" --finetune-from-model "$checkpoint" \
      --optimizer adam --adam-betas '(0.9, 0.98)' --lr "$rate" --lr-scheduler polynomial_decay \
      --warmup-updates $((updates / 10)) --total-num-update "$updates" --max-update "$updates" \
      --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --max-tokens 2048 --seed 1 \
      --save-dir "$work/$1" --no-epoch-checkpoints --log-format simple --log-interval 20
}

both full "Whole model" "$checkpoint"
for k in $top_ks; do
  both "everywhere-$k" "Attention, k = $k" "$checkpoint" --apply-top-k "$k"
  for place in encoder decoder cross; do
    stage "$place-$k-score" "Attention ($place), k = $k: loss" \
      score "$place-$k" "$checkpoint" --apply-top-k "$k" --apply-top-k-in "$place"
  done
done
for k in $ffn_top_ks; do
  both "ffn-$k" "Feed-forward layers, k = $k" "$checkpoint" --apply-ffn-top-k "$k"
done
noted top_k.md python -m elseq.reports.top_k quality --top-k $top_ks --ffn-top-k $ffn_top_ks \
  --plot "$work/top_k.png" "$work" --references "$references"

[ "$updates" -gt 0 ] || exit 0
stage finetune-full "Full attention, trained on: $updates updates" finetune full-tuned 0
stage "finetune-$tuned_k" "k = $tuned_k, trained on: $updates updates" finetune "top-$tuned_k-tuned" "$tuned_k"
full="$work/full-tuned/checkpoint_last.pt"
both full-tuned "Full attention, trained on" "$full"
both "full-tuned-top-$tuned_k" "The same, k = $tuned_k" "$full" --apply-top-k "$tuned_k"
both "top-$tuned_k-tuned" "k = $tuned_k, trained on" "$work/top-$tuned_k-tuned/checkpoint_last.pt"
noted -a top_k.md echo
noted -a top_k.md python -m elseq.reports.top_k finetuning --top-k "$tuned_k" --updates "$updates" \
  "$work" --references "$references"
