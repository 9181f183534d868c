#!/usr/bin/env bash
# Multi-head, grouped-query and multi-query attention at equal parameters: three German-English Transformers, trained on
# Multi30k with the same updates and, of a seed, the same order of the data; then the test set by beam search. Ends with a
# table (multi_query.md) of losses, perplexities, sacreBLEU and decoding state, and curves (multi_query.png). About an hour
# a seed on 2 cores.
#
# Usage: recipes/multi_query.sh [--fresh] [--dry-run] [--help]
# Environment: ELSEQ_DATA: folder with multi30k/{train,val,test_2016_flickr}.{de,en}.gz
#              ELSEQ_WORK (default: multi_query_output in the checkout), UPDATES (default: 800)
#              SEEDS (default: 1; with several, as in SEEDS="1 2 3", the table has means and standard deviations)
set -euo pipefail
. "$(dirname "$0")/stages.sh"
read_options "$@"
work=${ELSEQ_WORK:-$root/multi_query_output}
updates=${UPDATES:-800} seeds=${SEEDS:-1}
whole_numbers UPDATES 20 "$updates" # fewer leave nothing in the log for the curves
whole_numbers SEEDS 0 $seeds
use_multi30k
begin

# train NAME KV_HEADS FFN_WIDTH: 4 heads. What fewer key/value heads save is given to the feed-forward layers.
train() {
  run mkdir -p "$work/$1" &&
    logged "$1/train" fairseq-train "$work/data" --user-dir "$user_dir" --task elseq_translation \
      --arch elseq_transformer \
      --encoder-layers 3 --decoder-layers 3 --encoder-embed-dim 256 --encoder-ffn-embed-dim "$3" \
      --encoder-attention-heads 4 --decoder-attention-heads 4 --num-kv-heads "$2" --share-all-embeddings \
      --encoder-normalize-before --decoder-normalize-before --dropout 0.2 \
      --optimizer adam --adam-betas '(0.9, 0.98)' --lr 3e-3 --lr-scheduler inverse_sqrt --warmup-updates 300 \
      --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --max-tokens 2048 --max-update "$updates" \
      --validate-interval-updates 100 --save-dir "$work/$1" --no-epoch-checkpoints --seed "$seed" \
      --log-format simple --log-interval 20
}

# Keys and values, shared by the beam: what fewer key/value heads make smaller. Batches are the same for every model.
translate() {
  logged "$1/test" fairseq-generate "$work/data" --user-dir "$user_dir" --task elseq_translation --decode-attention kv \
    --path "$work/$1/checkpoint_best.pt" --gen-subset test --beam 4 --max-tokens 4000 \
    --remove-bpe sentencepiece --no-progress-bar
}

stage unpack "Multi30k" unpack_multi30k
stage pieces "Sentencepiece" pieces --vocabulary-size 8000
stage binarize "fairseq-preprocess" binarize
folders=()
for seed in $seeds; do
  suffix=$([ "$seed" = 1 ] || echo "-seed$seed")
  anew "$work/multi-head$suffix" "train-multi-head$suffix" "Multi-head attention: 4 key/value heads, seed $seed" \
    train "multi-head$suffix" 4 512
  anew "$work/grouped-query$suffix" "train-grouped-query$suffix" "Grouped-query attention: 2 key/value heads, seed $seed" \
    train "grouped-query$suffix" 2 704
  anew "$work/multi-query$suffix" "train-multi-query$suffix" "Multi-query attention: 1 key/value head, seed $seed" \
    train "multi-query$suffix" 1 800
  for name in multi-head grouped-query multi-query; do
    stage "translate-$name$suffix" "fairseq-generate: $name, seed $seed" translate "$name$suffix"
    folders+=("$work/$name$suffix")
  done
done
noted multi_query.md python -m elseq.reports.training attention "${folders[@]}" \
  --references "$work/corpus/test.target" --curves "$work/multi_query.png"
