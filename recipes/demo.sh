#!/usr/bin/env bash
# Train a small Transformer with stock fairseq to expand abbreviated English ("Ret the num of ele in the lis."). The text
# is sentences from the docstrings of Python and the installed packages. Then decode the test set three ways: by fairseq
# itself, and by elseq with keys and values (kv) and with EL-attention (el). 6 to 10 minutes on 2 cores.
#
# Usage: recipes/demo.sh [--fresh] [--dry-run] [--help]      finished stages are not run again unless --fresh is given
# Environment: ELSEQ_DEMO_DIR (default: demo_output in the checkout), DEMO_UPDATES (default: 2000)
set -euo pipefail
. "$(dirname "$0")/stages.sh"
read_options "$@"
work=${ELSEQ_DEMO_DIR:-$root/demo_output}
updates=${DEMO_UPDATES:-2000}
beam=4
whole_numbers DEMO_UPDATES 1 "$updates"
begin

corpus() { run python "$root/recipes/corpora/docstrings.py" "$work/corpus"; }

train() {
  shown=updates_done logged train fairseq-train "$work/data" --user-dir "$user_dir" --task translation --arch transformer \
    --encoder-layers 3 --decoder-layers 3 --encoder-embed-dim 128 --encoder-ffn-embed-dim 256 \
    --encoder-attention-heads 4 --decoder-attention-heads 4 --share-all-embeddings --dropout 0 \
    --encoder-normalize-before --decoder-normalize-before --clip-norm 1 \
    --optimizer adam --adam-betas '(0.9, 0.98)' --lr 2e-3 --lr-scheduler polynomial_decay --warmup-updates 200 \
    --total-num-update "$updates" --max-update "$updates" --max-tokens 1024 \
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1 \
    --save-dir "$work/checkpoints" --no-epoch-checkpoints --no-last-checkpoints --seed 1 \
    --log-format json --log-interval 10
}

updates_done() { python -P "$root/elseq/reports/train_progress.py" "$updates"; }

generate() {
  local mode=$1
  shown=sentences_done logged "generate-$mode" python "$root/scripts/measure.py" "$work/$mode.json" \
    fairseq-generate "$work/data" --user-dir "$user_dir" --task elseq_translation --decode-attention "$mode" \
    --path "$work/checkpoints/checkpoint_best.pt" --gen-subset test --beam $beam --max-len-b 60 --batch-size 100 \
    --remove-bpe sentencepiece --no-progress-bar
}

sentences_done() {
  grep --line-buffered '^H-' |
    python -m tqdm --total $(($(wc -l <"$work/corpus/test.target"))) --unit " sentences" --mininterval 1 >/dev/null
}

stage corpus "1/6 Sentences from the docstrings of Python and its packages" corpus
stage pieces "2/6 Sentencepiece vocabulary" pieces --vocabulary-size 2000
stage binarize "3/6 fairseq-preprocess" binarize
stage train "4/6 fairseq-train: a stock Transformer, $updates updates" train
for mode in stock kv el; do
  stage "generate-$mode" "5/6 fairseq-generate --decode-attention $mode" generate $mode
done
echo "== 6/6 What came out"
run python -m elseq.reports.demo "$work"
