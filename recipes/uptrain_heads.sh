#!/usr/bin/env bash
# Uptraining (GQA, 2305.13245): a trained multi-head model gets fewer key/value heads in its decoder, and a tenth of its
# updates more. Each head of the new model is the mean of those it replaces, or the first of them, or random; for
# comparison the multi-head model is trained on just as long. Ends with a table (uptraining.md) of what the conversion
# costs and how much of it comes back, and curves (uptraining.png). About 10 minutes on 2 cores.
#
# Usage: recipes/uptrain_heads.sh [--fresh] [--dry-run] [--help]    after recipes/multi_query.sh, whose multi-head model this takes
# Environment: CHECKPOINT, DATA (default: the multi-head model and the binarized data in multi_query_output)
#              MODEL_OPTIONS (default: the architecture of that model), UPDATES (that it was trained for; default: 800)
#              ELSEQ_WORK (default: uptraining_output in the checkout), METHODS (default: mean first random)
#              KV_HEADS (default: 1), UPTRAIN_UPDATES (default: a tenth of UPDATES), LR (default: where UPDATES ended)
set -euo pipefail
. "$(dirname "$0")/stages.sh"
read_options "$@"
work=${ELSEQ_WORK:-$root/uptraining_output}
checkpoint=${CHECKPOINT:-$root/multi_query_output/multi-head/checkpoint_best.pt}
data=${DATA:-$root/multi_query_output/data}
architecture=${MODEL_OPTIONS:---encoder-layers 3 --decoder-layers 3 --encoder-embed-dim 256 --encoder-ffn-embed-dim 512
  --encoder-attention-heads 4 --decoder-attention-heads 4 --share-all-embeddings --encoder-normalize-before
  --decoder-normalize-before --dropout 0.2}
methods=${METHODS:-mean first random}
kv_heads=${KV_HEADS:-1}
total=${UPDATES:-800}
whole_numbers UPDATES 1 "$total"
updates=${UPTRAIN_UPDATES:-$((total / 10))}
# The rate at which inverse_sqrt, from 3e-3 after 300 updates, had arrived: the model is trained on, not anew.
rate=${LR:-$(python -c "print(f'{3e-3 * min($total / 300, (300 / $total) ** 0.5):.3g}')")}
for file in "$checkpoint" "$data/dict.source.txt"; do
  [ -e "$file" ] || refuse "$file is missing; run recipes/multi_query.sh, or set CHECKPOINT and DATA"
done
for method in $methods; do one_of METHODS "$method" mean first random; done
whole_numbers KV_HEADS 1 "$kv_heads"
whole_numbers UPTRAIN_UPDATES 2 "$updates"
positive LR "$rate"
begin
settings="$checkpoint $(cksum <"$checkpoint") $data $architecture, $kv_heads key/value heads, $updates updates at $rate"

# validate CHECKPOINT NAME: the log is NAME.log.
validate() {
  logged "$2" fairseq-validate "$data" --user-dir "$(elseq-user-dir)" --task elseq_translation --path "$1" \
    --max-tokens 4096 --log-format simple
}

# convert METHOD: cross-attention and the decoder's self-attention. The encoder reads a sentence once, and keeps its heads.
convert() {
  run mkdir -p "$work/$1"
  logged "$1/convert" elseq-convert heads "$checkpoint" --num-kv-heads "$kv_heads" --method "$1" --in decoder,cross --seed 1 \
    --output "$work/$1/converted.pt" --overwrite
}

# uptrain NAME CHECKPOINT [OPTION...]: batches, regularization and loss are those of the training before; Adam's moments,
# which have the shape of the old heads, begin anew, hence the short warm-up.
uptrain() {
  local name=$1 start=$2; shift 2
  run rm -rf "$work/$name/checkpoints" && run mkdir -p "$work/$name"
  logged "$name/train" fairseq-train "$data" --user-dir "$(elseq-user-dir)" --task elseq_translation \
    --arch elseq_transformer $architecture "$@" --restore-file "$start" --reset-optimizer --reset-lr-scheduler --reset-meters --reset-dataloader \
    --optimizer adam --adam-betas '(0.9, 0.98)' --lr "$rate" --lr-scheduler fixed --warmup-updates $((updates / 10)) \
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --max-tokens 2048 --max-update "$updates" \
    --validate-interval-updates "$interval" --save-dir "$work/$name/checkpoints" --no-epoch-checkpoints --seed 1 \
    --log-format simple --log-interval "$interval"
}

# Ten points to the curve; half of the updates is one of them.
interval=$((updates < 20 ? 1 : updates / 10))
half=$((updates / 2 / interval * interval))
heads() { stage "convert-$1" "$1: to $kv_heads key/value heads" convert "$1"; }
first=${methods%% *}
heads "$first" # before all that takes longer: here it shows whether the model can have so many
stage validate "Multi-head model: validation" validate "$checkpoint" multi-head
stage uptrain-multi-head "Multi-head model, trained on: $updates updates" uptrain multi-head "$checkpoint"
for method in $methods; do
  [ "$method" = "$first" ] || heads "$method"
  stage "validate-$method" "$method: validation" validate "$work/$method/converted.pt" "$method/converted"
  stage "uptrain-$method" "$method: uptraining, $updates updates" uptrain "$method" "$work/$method/converted.pt" \
    --decoder-num-kv-heads "$kv_heads" --cross-num-kv-heads "$kv_heads"
done
noted uptraining.md python -m elseq.reports.training uptraining "$work" multi-head $methods \
  --at "$half" "$updates" --of "$total" --curves "$work/uptraining.png"
