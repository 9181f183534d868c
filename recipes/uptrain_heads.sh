#!/usr/bin/env bash
# Uptraining (GQA, 2305.13245): trained multi-head models get fewer key/value heads in their decoders, and a tenth of their
# updates more. Each head of a new model is the mean of those it replaces (mean), their mean after they were turned towards
# one another (aligned), their least-squares fit (fitted), the first of them, or random; for comparison the multi-head
# models are trained on just as long. Ends with a table (uptraining.md) of what the conversion costs and how much of it
# comes back, and curves (uptraining.png). About 10 minutes a seed on 2 cores.
#
# Usage: recipes/uptrain_heads.sh [--fresh] [--dry-run] [--help]
#        after SEEDS="1 2 3" recipes/multi_query.sh, whose multi-head models this takes
# Environment: SEEDS (default: 1 2 3; with several, the table has means and standard deviations)
#              CHECKPOINT (the multi-head model of each seed, separated by colons, or one for all; default: those in
#              multi_query_output)
#              DATA (the binarized data; default: in multi_query_output)
#              MODEL_OPTIONS (default: the architecture of those models), UPDATES (they were trained for; default: 800)
#              ELSEQ_WORK (default: uptraining_output in the checkout), METHODS (default: mean aligned fitted)
#              DISTILLATION (weight of the multi-head model as the teacher of the others, 0 to 1; default: 0)
#              KV_HEADS (default: 1), UPTRAIN_UPDATES (default: a tenth of UPDATES), LR (default: where UPDATES ended)
set -euo pipefail
. "$(dirname "$0")/stages.sh"
read_options "$@"
work=${ELSEQ_WORK:-$root/uptraining_output}
seeds=${SEEDS:-1 2 3}
whole_numbers SEEDS 0 $seeds
of_seed() { [ "$1" = 1 ] || echo "-seed$1"; }
of_recipe() { for seed in $seeds; do printf ':%s' "$root/multi_query_output/multi-head$(of_seed "$seed")/checkpoint_best.pt"; done; }
IFS=: read -ra checkpoints <<<"${CHECKPOINT:-$(of_recipe | cut -c2-)}"
data=${DATA:-$root/multi_query_output/data}
architecture=${MODEL_OPTIONS:---encoder-layers 3 --decoder-layers 3 --encoder-embed-dim 256 --encoder-ffn-embed-dim 512
  --encoder-attention-heads 4 --decoder-attention-heads 4 --share-all-embeddings --encoder-normalize-before
  --decoder-normalize-before --dropout 0.2}
methods=${METHODS:-mean aligned fitted}
kv_heads=${KV_HEADS:-1}
distillation=${DISTILLATION:-0}
total=${UPDATES:-800}
whole_numbers UPDATES 1 "$total"
updates=${UPTRAIN_UPDATES:-$((total / 10))}
# The rate at which inverse_sqrt, from 3e-3 after 300 updates, had arrived: the model is trained on, not anew.
rate=${LR:-$(python -c "print(f'{3e-3 * min($total / 300, (300 / $total) ** 0.5):.3g}')")}
count=$(wc -w <<<"$seeds")
[ ${#checkpoints[@]} = 1 ] || [ ${#checkpoints[@]} = "$count" ] ||
  refuse "CHECKPOINT names ${#checkpoints[@]} models for $count SEEDS; name one for each, or one for all"
for file in "${checkpoints[@]}" "$data/dict.source.txt"; do
  [ -e "$file" ] || refuse "$file is missing; run SEEDS=\"$seeds\" recipes/multi_query.sh, or set CHECKPOINT and DATA"
done
for method in $methods; do one_of METHODS "$method" mean aligned fitted first random; done
whole_numbers KV_HEADS 1 "$kv_heads"
whole_numbers UPTRAIN_UPDATES 2 "$updates"
positive LR "$rate"
share DISTILLATION "$distillation"
begin

# validate CHECKPOINT NAME: the log is NAME.log.
validate() {
  logged "$2" fairseq-validate "$data" --user-dir "$user_dir" --task elseq_translation --path "$1" \
    --max-tokens 4096 --log-format simple
}

# convert METHOD NAME: cross-attention and the decoder's self-attention. The encoder reads a sentence once, and keeps its heads.
convert() {
  local calibration=()
  case $1 in aligned | fitted) calibration=(--calibration train --data "$data") ;; esac
  run mkdir -p "$work/$2" &&
    logged "$2/convert" elseq-convert heads "$checkpoint" --num-kv-heads "$kv_heads" --method "$1" "${calibration[@]}" \
      --in decoder,cross --seed "$seed" --output "$work/$2/converted.pt" --overwrite
}

# uptrain NAME CHECKPOINT [OPTION...]: batches, regularization and loss are those of the training before; Adam's moments,
# which have the shape of the old heads, begin anew, hence the short warm-up.
uptrain() {
  local name=$1 start=$2 criterion=(--criterion label_smoothed_cross_entropy); shift 2
  [ "$start" = "$checkpoint" ] || [ "$distillation" = 0 ] ||
    criterion=(--criterion elseq_distillation --teacher "$checkpoint" --distillation-weight "$distillation")
  run rm -rf "$work/$name/checkpoints" && run mkdir -p "$work/$name" &&
    logged "$name/train" fairseq-train "$data" --user-dir "$user_dir" --task elseq_translation \
      --arch elseq_transformer $architecture "$@" --finetune-from-model "$start" \
      --optimizer adam --adam-betas '(0.9, 0.98)' --lr "$rate" --lr-scheduler fixed --warmup-updates $((updates / 10)) \
      "${criterion[@]}" --label-smoothing 0.1 --max-tokens 2048 --max-update "$updates" \
      --validate-interval-updates "$interval" --save-dir "$work/$name/checkpoints" --no-epoch-checkpoints --seed "$seed" \
      --log-format simple --log-interval "$interval"
}

# Ten points to the curve; half of the updates is one of them.
interval=$((updates < 20 ? 1 : updates / 10))
half=$((updates / 2 / interval * interval))
heads() { stage "convert-$1$suffix" "$1: to $kv_heads key/value heads, seed $seed" convert "$1" "$1$suffix"; }
first=${methods%% *}
number=0
for seed in $seeds; do
  suffix=$(of_seed "$seed")
  checkpoint=${checkpoints[${#checkpoints[@]} == 1 ? 0 : number++]}
  inputs=$(cksum "$checkpoint")
  heads "$first" # before all that takes longer: here it shows whether the model can have so many
  stage "validate$suffix" "Multi-head model, seed $seed: validation" validate "$checkpoint" "multi-head$suffix"
  stage "uptrain-multi-head$suffix" "Multi-head model, seed $seed, trained on: $updates updates" \
    uptrain "multi-head$suffix" "$checkpoint"
  for method in $methods; do
    [ "$method" = "$first" ] || heads "$method"
    stage "validate-$method$suffix" "$method, seed $seed: validation" \
      validate "$work/$method$suffix/converted.pt" "$method$suffix/converted"
    stage "uptrain-$method$suffix" "$method, seed $seed: uptraining, $updates updates" \
      uptrain "$method$suffix" "$work/$method$suffix/converted.pt" \
      --decoder-num-kv-heads "$kv_heads" --cross-num-kv-heads "$kv_heads"
  done
done
noted uptraining.md python -m elseq.reports.training uptraining "$work" multi-head $methods --seeds $seeds \
  --at "$half" "$updates" --of "$total" --curves "$work/uptraining.png"
