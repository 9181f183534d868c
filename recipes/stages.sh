# For recipes to source: `root` (the checkout), its .venv on the PATH, resumable stages in the folder `work`, and the stages
# that recipes share.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -d "$root/.venv/bin" ] && export PATH="$root/.venv/bin:$PATH"

# stage NAME TITLE COMMAND...: run the command, unless this stage and all before it finished already, saying the same as
# now. `settings` holds what a command reads besides its arguments.
again=
stage() {
  local name=$1 title=$2 start=$SECONDS; shift 2
  if up_to_date "$name" "$@"; then
    echo "== $title: done before"
    return
  fi
  again=yes
  rm -f "$work/$name.done"
  echo "== $title"
  "$@" || { echo "elseq: error: the stage '$name' failed; see the logs in $work and run the same command again" >&2; exit 1; }
  wanted "$@" >"$work/$name.done"
  echo "   $((SECONDS - start)) s"
}

wanted() { echo "$* ${settings:-} $(declare -f "$1")"; }

up_to_date() {
  local name=$1; shift
  [ -z "$again" ] && [ "$(wanted "$@")" = "$(cat "$work/$name.done" 2>/dev/null)" ]
}

# anew FOLDER NAME TITLE COMMAND...: a stage that begins without the folder. A training would go on from the checkpoint of
# an earlier run, with other settings perhaps, and its log would begin in the middle.
anew() {
  local folder=$1; shift
  up_to_date "$1" "${@:3}" || rm -rf "$folder"
  stage "$@"
}

# pieces [OPTION...]: sentencepiece vocabulary of $work/corpus, and the corpus in its pieces.
pieces() { python "$root/scripts/encode_pieces.py" "$work/corpus" "$work/pieces" "$@" 2>"$work/pieces.log"; }

binarize() {
  rm -rf "$work/data" # what an earlier run with other settings made; fairseq-preprocess refuses to replace it
  fairseq-preprocess --source-lang source --target-lang target --joined-dictionary --workers 2 \
    --trainpref "$work/pieces/train" --validpref "$work/pieces/valid" --testpref "$work/pieces/test" \
    --destdir "$work/data" >"$work/binarize.log" 2>&1
}

# use_multi30k [--fresh]: the work folder, and `text`, the folder of Multi30k under ELSEQ_DATA.
use_multi30k() {
  text=${ELSEQ_DATA:-$root/../shared/data}/multi30k
  [ -e "$text/train.de.gz" ] || { echo "elseq: error: $text/train.de.gz is missing; set ELSEQ_DATA to the folder that holds multi30k" >&2; exit 1; }
  [ "${1:-}" = --fresh ] && rm -rf "$work"
  mkdir -p "$work"
}

unpack_multi30k() {
  mkdir -p "$work/corpus"
  local pair
  for pair in train:train val:valid test_2016_flickr:test; do
    gzip -dc "$text/${pair%:*}.de.gz" >"$work/corpus/${pair#*:}.source"
    gzip -dc "$text/${pair%:*}.en.gz" >"$work/corpus/${pair#*:}.target"
  done
}
