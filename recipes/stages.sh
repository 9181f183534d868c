# For recipes to source: `root` (the checkout), its .venv on the PATH, resumable stages in the folder `work`, and the stages
# that recipes share.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -d "$root/.venv/bin" ] && export PATH="$root/.venv/bin:$PATH"

# stage NAME TITLE COMMAND...: run the command, unless this stage and all before it finished already, saying the same as
# now. `settings` holds what a command reads besides its arguments.
again=
stage() {
  local name=$1 title=$2 start=$SECONDS; shift 2
  local wanted="$* ${settings:-} $(declare -f "$1")"
  if [ -z "$again" ] && [ "$wanted" = "$(cat "$work/$name.done" 2>/dev/null)" ]; then
    echo "== $title: done before"
    return
  fi
  again=yes
  rm -f "$work/$name.done"
  echo "== $title"
  "$@" || { echo "elseq: error: the stage '$name' failed; see the logs in $work and run the same command again" >&2; exit 1; }
  echo "$wanted" >"$work/$name.done"
  echo "   $((SECONDS - start)) s"
}

# pieces [OPTION...]: sentencepiece vocabulary of $work/corpus, and the corpus in its pieces.
pieces() { python "$root/scripts/encode_pieces.py" "$work/corpus" "$work/pieces" "$@" 2>"$work/pieces.log"; }

binarize() {
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
