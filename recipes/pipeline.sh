# For recipes to source that go from a corpus to scores in seven stages: their options, their settings, and the stages that
# they share. A recipe names its `corpus`, its `folder` in ELSEQ_DATA and its `models`, sources this, sets what the functions
# below read, defines run_fetch, run_prepare and run_score, and ends with: run_stages "$@"
. "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

STAGES=(fetch prepare binarize train generate score benchmark)
declare -A TITLES=(
  [fetch]="the corpus as it is published" [prepare]="text, an example a line" [binarize]="subwords, fairseq-preprocess"
  [train]="fairseq-train" [generate]="the test set, decoded" [score]="scores" [benchmark]="stock fairseq, kv and el, timed")

for name in UPDATES UPDATE_FREQ; do whole_numbers "$name" 1 "${!name:-1}"; done
positive HOURS "${HOURS:-1}"

# The settings.
MODEL=${MODEL:-transformer} ATTENTION=${ATTENTION:-mha} DECODE=${DECODE:-auto} SMALL=${SMALL:-0} BART=${BART:-}
one_of MODEL "$MODEL" $models
one_of ATTENTION "$ATTENTION" mha mq
one_of DECODE "$DECODE" auto kv el
one_of SMALL "$SMALL" 0 1
small() { [ "$SMALL" = 1 ]; }
is_bart() { [[ $MODEL = bart_* ]]; }
multi_query() { [ "$ATTENTION" = mq ]; }
text=${ELSEQ_DATA:-}
[ -z "${ELSEQ_DATA:-}" ] || [ -d "$ELSEQ_DATA" ] || refuse "ELSEQ_DATA $ELSEQ_DATA is no folder; name one, or leave it out"
work=${ELSEQ_WORK:-$root/${corpus}_output/$MODEL-$ATTENTION$(small && echo -small || true)}
[ -z "$BART" ] || is_bart || refuse "BART is for MODEL=bart_base and MODEL=bart_large; MODEL is $MODEL"
bpe=${BART:-$text/gpt2_bpe}
if is_bart; then
  [ -n "$BART$text" ] || refuse "MODEL is $MODEL, which needs the GPT-2 BPE; set BART to a folder with a BART of fairseq and" \
    "encoder.json and vocab.bpe, or ELSEQ_DATA to a folder with gpt2_bpe/"
  for file in ${BART:+model.pt} dict.txt encoder.json vocab.bpe; do
    [ -e "$bpe/$file" ] || refuse "$bpe/$file is missing; set BART to a folder with a BART of fairseq and the GPT-2 BPE"
  done
fi

# published_or_small PUBLISHED SMALL
published_or_small() { if small; then echo "$2"; else echo "$1"; fi; }

# What a recipe may set otherwise. UPDATES, UPDATE_FREQ and HOURS (to stop after) are the user's.
bart_updates=20000 bart_update_freq=4 transformer_updates=100000 transformer_update_freq=8
vocabulary=$(published_or_small 32000 4000)
source_pieces=1022 # with <s> and </s>: 1,024 positions
small_transformer=(--encoder-layers 3 --decoder-layers 3 --encoder-embed-dim 256 --encoder-ffn-embed-dim 512
  --encoder-attention-heads 4 --decoder-attention-heads 4)
pieces_more=() training_more=()
interval=$(published_or_small 1000 100) # updates from one validation and checkpoint to the next
benchmark_lines=$(published_or_small 512 8) benchmark_batches=$(published_or_small 32,64,128 4) benchmark_repeats=3
# With SMALL: updates, and examples of the test set. The other models keep their 139 million parameters, or 270, or 406.
case $MODEL in
  transformer) small_updates=100 small_examples=100 ;;
  bart_base) small_updates=20 small_examples=8 ;;
  *) small_updates=5 small_examples=4 ;;
esac
if small && [ "$MODEL" != transformer ]; then benchmark_lines=2 benchmark_repeats=1; fi

# What elseq.load needs beside the dictionaries goes to $work/data, too.
run_binarize() {
  if is_bart; then
    pieces --gpt2-bpe "$bpe" --truncate-source "$source_pieces" &&
      binarize --srcdict "$bpe/dict.txt" --tgtdict "$bpe/dict.txt" &&
      run cp "$bpe/encoder.json" "$bpe/vocab.bpe" "$work/data"
  else
    pieces --vocabulary-size "$vocabulary" "${pieces_more[@]}" --truncate-source "$source_pieces" &&
      binarize &&
      run cp "$work/pieces/sentencepiece.model" "$work/data"
  fi
}

# Fewer key/value heads are the decoder's: the encoder reads a sentence once, and keeps its heads.
set_architecture() {
  case $MODEL in
    transformer)
      architecture=(--arch el_transformer --share-all-embeddings --encoder-normalize-before --decoder-normalize-before)
      ! small || architecture+=("${small_transformer[@]}") ;;
    # Three matrices of embeddings, not shared: so the 270 million parameters of 2105.04779 come about.
    transformer_270m) architecture=(--arch el_transformer_vaswani_wmt_en_de_big) ;;
    *) architecture=(--arch "el_$MODEL") ;;
  esac
  ! multi_query || architecture+=(--decoder-num-kv-heads 1 --cross-num-kv-heads 1)
}

# BART has the options of its finetuning with fairseq on eight GPUs; on one, UPDATE_FREQ is eight times as large. For the
# other models no options were published.
set_training() {
  if is_bart; then
    updates=${UPDATES:-$(published_or_small "$bart_updates" "$small_updates")}
    training=(--lr 3e-5 --lr-scheduler polynomial_decay --total-num-update "$updates"
      --warmup-updates "$(published_or_small 500 1)" --adam-betas '(0.9, 0.999)' --adam-eps 1e-08 --weight-decay 0.01
      --clip-norm 0.1 --dropout 0.1 --attention-dropout 0.1 --required-batch-size-multiple 1
      --max-tokens "$(published_or_small 2048 512)"
      --update-freq "${UPDATE_FREQ:-$(published_or_small "$bart_update_freq" 1)}")
  else
    updates=${UPDATES:-$(published_or_small "$transformer_updates" "$small_updates")}
    training=(--lr "$(published_or_small 5e-4 2e-3)" --lr-scheduler inverse_sqrt
      --warmup-updates "$(published_or_small 4000 300)" --adam-betas '(0.9, 0.98)' --clip-norm 1 --dropout 0.1
      --max-tokens 4096 --update-freq "${UPDATE_FREQ:-$(published_or_small "$transformer_update_freq" 1)}")
  fi
  training+=(--optimizer adam --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --max-update "$updates")
  [ -z "${HOURS:-}" ] || training+=(--stop-time-hours "$HOURS")
  ! gpu || training+=(--fp16)
}

# --finetune-from-model takes the weights alone, as --restore-file with all of --reset-* does, and, other than that,
# lets a training that was interrupted go on where it was.
run_train() {
  local start=()
  if [ -n "$BART" ]; then
    start=(--finetune-from-model "$BART/model.pt")
    if multi_query; then
      start=(--finetune-from-model "$work/bart.1kv.pt")
      logged convert elseq-convert heads "$BART/model.pt" --num-kv-heads 1 --output "$work/bart.1kv.pt" --overwrite || return
    fi
  fi
  logged train fairseq-train "$work/data" --user-dir "$user_dir" --task elseq_translation \
    --source-lang source --target-lang target --truncate-source --skip-invalid-size-inputs-valid-test \
    "${architecture[@]}" "${training[@]}" "${training_more[@]}" "${start[@]}" \
    --validate-interval-updates "$interval" --save-interval-updates "$interval" --keep-interval-updates 1 \
    --save-dir "$work/checkpoints" --no-epoch-checkpoints --seed 1 --log-format simple --log-interval $((updates < 20 ? updates : 20))
}

run_generate() {
  local dtype=()
  ! gpu || dtype=(--dtype float16)
  run elseq-generate --model "$work/checkpoints/checkpoint_best.pt" --data "$work/data" --input "$work/corpus/test.source" \
    --output "$work/test.hypothesis" --overwrite --truncate --attention "$DECODE" --beam "$beam" "${search[@]}" "${dtype[@]}"
}

run_benchmark() {
  local device=(--device cpu --dtype float32)
  ! gpu || device=(--device cuda --dtype float16)
  run sed -n "1,${benchmark_lines}w $work/benchmark.source" "$work/pieces/test.source" &&
    run elseq-benchmark "$work/checkpoints/checkpoint_best.pt" --data "$work/data" --source "$work/benchmark.source" \
      --modes stock,kv,el --batch-sizes "$benchmark_batches" --repeats "$benchmark_repeats" --beams "$beam" "${search[@]}" "${device[@]}" \
      --output "$work/benchmark"
}

# Print the help of the recipe, and that of all recipes of this kind.
usage() {
  about
  cat <<TEXT

Stages: ${STAGES[*]}. A finished one is not run
again unless its commands have changed; training and generation go on where they stopped.

Options:
  --from STAGE, --to STAGE  the first and the last stage to run
  --dry-run                 print the commands of every stage, with all settings, and run nothing
  --fresh                   forget what is finished, of the stages from --from on

Settings, in the environment:
  MODEL       $(printf '%s ' $models)(default: transformer)
  ATTENTION   mha, or mq: the decoder has one key/value head (default: mha)
  DECODE      auto, kv, el (default: auto)
  SMALL=1     a small model, part of the data: minutes on 2 cores
  BART        folder with a pretrained BART of fairseq: model.pt, dict.txt, encoder.json, vocab.bpe
  ELSEQ_DATA  folder with $folder/ and, for BART models, gpt2_bpe/ ; without $folder/ the corpus is downloaded
  ELSEQ_WORK  folder of what is made (default: ${corpus}_output/MODEL-ATTENTION)
  UPDATES, UPDATE_FREQ, HOURS  of training, instead of the defaults; it stops after HOURS at the latest
TEXT
}

# place STAGE: from 0 on.
place() {
  local index
  for index in "${!STAGES[@]}"; do [ "${STAGES[index]}" != "$1" ] || echo "$index"; done
}

# The work folder, for this run alone.
claim() {
  [ -z "${claimed:-}" ] || return 0
  make_work
  claimed=yes
  command -v flock >/dev/null || return 0
  { exec {lock}>"$work/lock"; } 2>/dev/null || refuse "$work cannot be written; set ELSEQ_WORK to another folder"
  flock --nonblock "$lock" || refuse "another run works in $work; wait for it, or set ELSEQ_WORK"
}

run_stages() {
  local from=fetch to=benchmark name title index
  while [ $# -gt 0 ]; do
    case $1 in
      --from | --to)
        [ $# -gt 1 ] || refuse "$1 needs a stage: ${STAGES[*]}"
        one_of "$1" "$2" "${STAGES[@]}"
        [ "$1" = --to ] && to=$2 || from=$2
        shift ;;
      --fresh) fresh=yes ;;
      --dry-run) dry_run=yes ;;
      -h | --help) usage; return ;;
      *) refuse "$1 is unknown; the options are --from STAGE, --to STAGE, --fresh, --dry-run and --help" ;;
    esac
    shift
  done
  [ "$(place "$from")" -le "$(place "$to")" ] || refuse "--to $to comes before --from $from; change one of them"
  need_elseq
  set_architecture
  set_training
  search=(--lenpen "$lenpen" --min-len "$min_len" --max-len-b "$max_len" --no-repeat-ngram-size "$no_repeat_ngram")
  echo "$corpus: $MODEL, attention $ATTENTION$(small && echo ', small'), $updates updates, decoding by $DECODE; in $work"
  ! is_bart || [ -n "$BART" ] || echo "BART is not set: training starts from random weights, not from a pretrained BART."
  [ "$from" != fetch ] || { [ -n "$text" ] && [ -d "$text/$folder" ]; } ||
    echo "There is no ELSEQ_DATA with $folder/: fetch downloads the corpus."
  [ -z "$dry_run" ] || echo "Nothing is run. The commands of each stage:"
  for name in "${STAGES[@]:0:$(place "$from")}"; do
    [ -n "$dry_run" ] || [ "$(time_of "$name.done")" -gt "$latest" ] ||
      refuse "the stage $name has not finished in $work; begin with it, not with $from"
    latest=$(time_of "$name.done")
  done
  for ((index = $(place "$from"); index <= $(place "$to"); index++)); do
    name=${STAGES[index]} title="$((index + 1))/${#STAGES[@]} ${STAGES[index]}: ${TITLES[${STAGES[index]}]}"
    [ -n "$dry_run" ] || claim
    case $name in
      train) resumed "$work/checkpoints" "$name" "$title" run_train ;;
      *) stage "$name" "$title" "run_$name" ;;
    esac
  done
}
