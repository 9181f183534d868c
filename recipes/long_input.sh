#!/usr/bin/env bash
# Sources of any length, read in windows. A small Transformer is trained to translate the German one of several
# sentences (Multi30k), with sources of one window. Then the German sentence is hidden among English ones in sources of up to
# 16,384 tokens, which the model reads cut to the window, in windows, in windows after a short training with windows, and
# whole after as short a training with whole sources. Ends with tables (long_input.md) of the loss of the references and
# of the decoding state against the length, and a plot (long_input.png). About half an hour on 2 cores.
#
# With TASK=questions it asks questions about the marked answers in paragraphs of SQuAD instead.
#
# With MODEL=bart_large BART=FOLDER DOCUMENTS=FOLDER, a BART of fairseq summarizes documents of your own, cut and in windows;
# with UPDATES, after it was trained in both ways. Ends with ROUGE (scores.md).
#
# Usage: recipes/long_input.sh [--fresh] [--dry-run] [--help]      (docs/recipes/long_input.md)
# Environment: MODEL (transformer (default), bart_base, bart_large)
#              ELSEQ_WORK (default: long_input_output/TASK or long_input_output/MODEL in the checkout)
#              WINDOW (default: 512; for a BART 1024): tokens of a window, and states that each query attends to
#              FINETUNE_WINDOWS (default: 2): windows of a source that a training with windows has gradients through
#   of the Transformer:
#              TASK (translation (default), questions)
#              ELSEQ_DATA: folder with multi30k/{train,val,test_2016_flickr}.{de,en}.gz, or with squad/ (default: SQuAD is
#              downloaded)
#              LENGTHS (default: 512 1024 2048 4096 8192 16384): tokens of the sources
#              EXAMPLES (default: 100): of the test set; PARAGRAPH_WORDS (default: 16): of each paragraph of SQuAD
#              VOCABULARY (default: 4000), MODEL_OPTIONS (default: 2+2 layers, width 128, feed-forward width 256)
#              UPDATES (default: 1500), LR (default: 3e-3)
#              FINETUNE_UPDATES (default: 80; 0: none), FINETUNE_LENGTH (default: 2048), FINETUNE_LR (default: 3e-4)
#   of a BART: BART: folder with model.pt, dict.txt, encoder.json and vocab.bpe
#              DOCUMENTS: folder with test.jsonl, and to train train.jsonl and valid.jsonl, each or .gz: on each line
#              {"document": ..., "summary": ...}
#              UPDATES (default: 0; fairseq's finetuning of BART had 20000), UPDATE_FREQ (default: 8)
#              GENERATE_OPTIONS (default: --beam 4 --lenpen 2 --min-len 55 --max-len-b 900 --no-repeat-ngram-size 3)
#              MODEL_OPTIONS (of a BART of another size than MODEL)
set -euo pipefail
. "$(dirname "$0")/stages.sh"
read_options "$@"
model=${MODEL:-transformer} task=${TASK:-translation}
one_of MODEL "$model" transformer bart_base bart_large
one_of TASK "$task" translation questions
if [ "$model" = transformer ]; then name=$task; else name=$model; fi
work=${ELSEQ_WORK:-$root/long_input_output/$name}
windows=${FINETUNE_WINDOWS:-2}
whole_numbers FINETUNE_WINDOWS 1 "$windows"

# The Transformer and marked texts.

marked_texts_in_windows() {
  window=${WINDOW:-512} lengths=${LENGTHS:-512 1024 2048 4096 8192 16384} examples=${EXAMPLES:-100}
  words=${PARAGRAPH_WORDS:-16} vocabulary=${VOCABULARY:-4000} updates=${UPDATES:-1500} rate=${LR:-3e-3}
  tuning=${FINETUNE_UPDATES:-80} tuned_length=${FINETUNE_LENGTH:-2048} tuning_rate=${FINETUNE_LR:-3e-4}
  whole_numbers WINDOW 2 "$window"
  whole_numbers LENGTHS 2 $lengths
  whole_numbers EXAMPLES 1 "$examples"
  whole_numbers PARAGRAPH_WORDS 1 "$words"
  whole_numbers VOCABULARY 1 "$vocabulary"
  whole_numbers UPDATES 20 "$updates"
  whole_numbers FINETUNE_UPDATES 0 "$tuning"
  whole_numbers FINETUNE_LENGTH "$window" "$tuned_length"
  positive LR "$rate"
  positive FINETUNE_LR "$tuning_rate"
  [ "$task" = questions ] || use_multi30k
  begin
  architecture=${MODEL_OPTIONS:---encoder-layers 2 --decoder-layers 2 --encoder-embed-dim 128 --encoder-ffn-embed-dim 256
    --encoder-attention-heads 4 --decoder-attention-heads 4 --share-all-embeddings --encoder-normalize-before
    --decoder-normalize-before --dropout 0}
  local first="$work/first/checkpoint_best.pt" tuned="$work/tuned/checkpoint_last.pt" full="$work/full/checkpoint_last.pt"
  local length method of_tuning=()

  stage prepare "Marked texts" "prepare_$task"
  stage pieces "Sentencepiece" pieces --vocabulary-size "$vocabulary" --symbol '[HL]'
  stage binarize "fairseq-preprocess" binarize
  stage hide-mixed "Marked texts among others, up to $window tokens" \
    hide mixed "train=100000,valid=500" --length "$window" --texts mixed
  anew "$work/first" train "A model of one window: $updates updates" train first "$work/mixed/data" "$updates" "$rate" \
    --max-source-positions "$window" --max-tokens 4096 --validate-interval-updates 250
  if [ "$tuning" -gt 0 ]; then
    stage hide-training "Marked texts hidden in training sources of $tuned_length tokens" \
      hide training "train=$((tuning * 8)),valid=50" --length "$tuned_length"
    anew "$work/tuned" train-tuned "Trained on in windows: $tuning updates" finetune tuned \
      --max-source-positions "$window" --source-window "$window" --train-windows "$windows" --attention-top-k "$window"
    anew "$work/full" train-full "Trained on with whole sources: $tuning updates" finetune full \
      --max-source-positions "$tuned_length"
    of_tuning=(--tuned "$tuned_length")
  fi

  for name in own other; do
    stage "hide-$name" "Test set: the $name text alone" hide "$name" "test=$examples" --length "$window" --texts "$name"
    stage "$name" "The $name text alone: loss" score "$name" "$work/$name/data" "$first"
  done
  for length in $lengths; do
    stage "hide-$length" "Test set: marked texts hidden in sources of $length tokens" \
      hide "hidden-$length" "test=$examples" --length "$length" --others valid,test
    stage "cut-$length" "$length tokens, cut to $window: loss" cut "cut-$length" "$length" "$first"
    stage "windows-$length" "$length tokens, in windows: loss" \
      whole "windows-$length" "$length" "$first" --source-window "$window"
    stage "top-k-$length" "$length tokens, in windows, to $window states: loss" \
      whole "top-k-$length" "$length" "$first" --long-input
    for method in kv el; do
      stage "state-$method-$length" "$length tokens, in windows: the decoding state of $method" remember "$method" "$length"
    done
    [ "$tuning" -gt 0 ] || continue
    stage "tuned-cut-$length" "$length tokens, trained on in windows, cut to $window: loss" \
      cut "tuned-cut-$length" "$length" "$tuned" --source-window 0
    stage "tuned-$length" "$length tokens, trained on in windows, in windows: loss" whole "tuned-$length" "$length" "$tuned"
    [ "$length" -gt "$tuned_length" ] ||
      stage "full-$length" "$length tokens, trained on with whole sources, whole: loss" \
        whole "full-$length" "$length" "$full" --max-source-positions "$tuned_length"
  done
  noted long_input.md python -m elseq.reports.long_input "$work" --lengths $lengths "${of_tuning[@]}" \
    --plot "$work/long_input.png"
}

prepare_translation() {
  unpack_multi30k && run sed -i 's/.*/[HL] & [HL]/' "$work"/corpus/{train,valid,test}.source
}

prepare_questions() {
  local have=()
  [ ! -d "${ELSEQ_DATA:-}/squad" ] || have=(--from "$ELSEQ_DATA/squad")
  run python "$root/recipes/corpora/squad_questions.py" fetch "$work/raw" "${have[@]}" &&
    noted prepare.log python "$root/recipes/corpora/squad_questions.py" prepare "$work/raw" "$work/corpus" --highlight \
      --paragraph-words "$words"
}

# hide NAME SIZES OPTION...: the splits that have a size, in $work/NAME.
hide() {
  local folder=$work/$1 sizes=$2 split prefixes=() others=(); shift 2
  [ "$task" = questions ] || others=(--other-side target)
  for split in train valid test; do
    [[ ,$sizes != *,$split=* ]] || prefixes+=("--${split}pref" "$folder/pieces/$split")
  done
  # fairseq-preprocess refuses to replace the files of an earlier run with other settings.
  run rm -rf "$folder" && run mkdir -p "$folder" &&
    noted "${folder##*/}/prepare.log" python "$root/recipes/corpora/long_sources.py" "$work/corpus" "$folder/corpus" \
      --sentencepiece "$work/pieces/sentencepiece.model" --size "$sizes" "${others[@]}" "$@" &&
    run python "$root/scripts/encode_text.py" "$folder/corpus" "$folder/pieces" \
      --sentencepiece "$work/pieces/sentencepiece.model" &&
    logged "${folder##*/}/binarize" fairseq-preprocess --source-lang source --target-lang target --workers 2 \
      --srcdict "$work/data/dict.source.txt" --tgtdict "$work/data/dict.target.txt" "${prefixes[@]}" \
      --destdir "$folder/data"
}

# train NAME DATA UPDATES LR OPTION...
train() {
  local name=$1 data=$2 updates=$3 rate=$4; shift 4
  run mkdir -p "$work/$name" &&
    logged "$name/train" fairseq-train "$data" --user-dir "$user_dir" --task elseq_translation \
      --arch elseq_transformer $architecture --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1 --lr "$rate" \
      --lr-scheduler polynomial_decay --warmup-updates $((updates / 10)) --total-num-update "$updates" --max-update "$updates" \
      --criterion label_smoothed_cross_entropy --label-smoothing 0 --required-batch-size-multiple 1 \
      --save-dir "$work/$name" --no-epoch-checkpoints --seed 1 --log-format simple \
      --log-interval $((updates < 20 ? updates : 20)) "$@"
}

# finetune NAME OPTION...: of the first model, eight sources an update. Adam's moments begin anew.
finetune() {
  local name=$1; shift
  train "$name" "$work/training/data" "$tuning" "$tuning_rate" --finetune-from-model "$work/first/checkpoint_best.pt" \
    --batch-size 4 --update-freq 2 "$@"
}

# generate NAME DATA CHECKPOINT OPTION...
generate() {
  local name=$1 data=$2 checkpoint=$3; shift 3
  logged "$name" fairseq-generate "$data" --user-dir "$user_dir" --task elseq_translation --path "$checkpoint" \
    --gen-subset test --required-batch-size-multiple 1 --no-progress-bar "$@"
}

# score NAME DATA CHECKPOINT OPTION...: of the references.
score() { generate "$@" --score-reference --max-tokens "$(printf '%s\n' 4096 $lengths | sort -n | tail -1)"; }

# whole NAME LENGTH CHECKPOINT OPTION...: of the test set with hidden texts.
whole() { score "$1" "$work/hidden-$2/data" "${@:3}"; }

cut() { whole "$@" --truncate-source --max-source-positions "$window"; }

# remember METHOD LENGTH: the decoding state of the first example, decoded to the same length everywhere.
remember() {
  generate "state-$1-$2" "$work/hidden-$2/data" "$work/first/checkpoint_best.pt" --long-input --decode-attention "$1" --batch-size 1 \
    --num-shards "$examples" --beam 4 --min-len 20 --max-len-b 20
}

# A BART and documents.

documents_in_windows() {
  window=${WINDOW:-1024} bart=${BART:-} documents=${DOCUMENTS:-} updates=${UPDATES:-0} update_freq=${UPDATE_FREQ:-8}
  search=${GENERATE_OPTIONS:---beam 4 --lenpen 2 --min-len 55 --max-len-b 900 --no-repeat-ngram-size 3}
  local split splits=test file
  whole_numbers WINDOW 2 "$window"
  whole_numbers UPDATES 0 "$updates"
  whole_numbers UPDATE_FREQ 1 "$update_freq"
  for file in model.pt dict.txt encoder.json vocab.bpe; do
    [ -e "$bart/$file" ] || refuse "${bart:-BART}/$file is missing; set BART to a folder with a BART of fairseq and the GPT-2 BPE"
  done
  [ "$updates" = 0 ] || splits="train valid test"
  for split in $splits; do
    [ -e "$documents/$split.jsonl" ] || [ -e "$documents/$split.jsonl.gz" ] ||
      refuse "${documents:-DOCUMENTS}/$split.jsonl is missing; set DOCUMENTS to a folder that has it"
  done
  begin
  if gpu; then precision=(--fp16) dtype=(--dtype float16); else precision=() dtype=(); fi

  stage prepare "Documents and summaries" prepare_documents "${splits// /,}"
  stage cut "Documents cut to the positions" summarize cut "$bart/model.pt" "$bart" --truncate
  stage windows "Documents in windows of $window" \
    summarize windows "$bart/model.pt" "$bart" --long-input --source-window "$window" --apply-top-k "$window" --apply-top-k-in cross
  local outputs=("$work"/{cut,windows}.hypothesis)
  if [ "$updates" -gt 0 ]; then
    stage pieces "The BPE of GPT-2" pieces --gpt2-bpe "$bart"
    stage binarize "fairseq-preprocess" binarize_documents
    anew "$work/tuned-cut" train-cut "Trained on documents that are cut: $updates updates" finetune_bart tuned-cut --truncate-source
    anew "$work/tuned" train-windows "Trained in windows: $updates updates" finetune_bart tuned \
      --source-window "$window" --train-windows "$windows" --attention-top-k "$window"
    stage tuned-cut "Trained on documents that are cut: summaries" \
      summarize tuned-cut "$work/tuned-cut/checkpoint_last.pt" "$work/data" --truncate
    stage tuned "Trained in windows: summaries" summarize tuned "$work/tuned/checkpoint_last.pt" "$work/data"
    outputs+=("$work"/{tuned-cut,tuned}.hypothesis)
  fi
  noted scores.md elseq-score rouge "${outputs[@]}" "$work/corpus/test.target" --output "$work/scores.json"
}

prepare_documents() {
  noted prepare.log python "$root/recipes/corpora/documents.py" "$documents" "$work/corpus" --splits "$1"
}

# What elseq-generate needs beside the dictionaries goes to $work/data, too.
binarize_documents() {
  binarize --srcdict "$bart/dict.txt" --tgtdict "$bart/dict.txt" && run cp "$bart/encoder.json" "$bart/vocab.bpe" "$work/data"
}

# finetune_bart NAME OPTION...: fairseq's settings for BART; one document at a time.
finetune_bart() {
  local name=$1; shift
  run mkdir -p "$work/$name" &&
    logged "$name/train" fairseq-train "$work/data" --user-dir "$user_dir" --task elseq_translation \
      --source-lang source --target-lang target --arch "el_$model" ${MODEL_OPTIONS:-} --finetune-from-model "$bart/model.pt" \
      --optimizer adam --adam-betas '(0.9, 0.999)' --adam-eps 1e-08 --weight-decay 0.01 --clip-norm 0.1 \
      --lr 3e-5 --lr-scheduler polynomial_decay --warmup-updates $((updates / 40)) --total-num-update "$updates" \
      --max-update "$updates" --dropout 0.1 --attention-dropout 0.1 --criterion label_smoothed_cross_entropy \
      --label-smoothing 0.1 --batch-size 1 --update-freq "$update_freq" --required-batch-size-multiple 1 \
      --skip-invalid-size-inputs-valid-test "${precision[@]}" \
      --save-dir "$work/$name" --no-epoch-checkpoints --seed 1 --log-format simple \
      --log-interval $((updates < 20 ? updates : 20)) "$@"
}

# summarize NAME CHECKPOINT DATA OPTION...
summarize() {
  local name=$1 checkpoint=$2 data=$3; shift 3
  run elseq-generate --model "$checkpoint" --data "$data" --input "$work/corpus/test.source" --output "$work/$name.hypothesis" --overwrite \
    --attention el $search "${dtype[@]}" "$@"
}

if [ "$model" = transformer ]; then marked_texts_in_windows; else documents_in_windows; fi; exit # on one line: this may change while it runs
