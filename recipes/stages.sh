# For recipes to source: `root` (the checkout), its .venv on the PATH, resumable stages in the folder `work`, and the stages
# that recipes share.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -d "$root/.venv/bin" ] && export PATH="$root/.venv/bin:$PATH"

refuse() { echo "elseq: error: $*" >&2; exit 1; }

. "$root/scripts/end_commands.sh"
trap end_commands EXIT

# one_of SETTING VALUE CHOICE...
one_of() {
  local setting=$1 value=$2 choice choices; shift 2
  for choice; do [ "$choice" = "$value" ] && return; done
  choices=$(printf ', %s' "$@")
  refuse "$setting $value is unknown; choose one of ${choices:2}"
}

# whole_numbers SETTING LEAST VALUE...: of one setting, each value a number that programs in every language read alike.
whole_numbers() {
  local setting=$1 least=$2 value; shift 2
  [ $# -gt 0 ] || refuse "$setting is empty; give a whole number, $least or more, or leave it out"
  for value; do
    [[ $value =~ ^(0|[1-9][0-9]{0,8})$ && $value -ge $least ]] ||
      refuse "$setting is $value; give a whole number, $least or more"
  done
}

decimal='^([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]{1,2})?$'

# positive SETTING VALUE: 2, 0.5 or 1e-3.
positive() { [[ $2 =~ $decimal && ${2%%[eE]*} =~ [1-9] ]] || refuse "$1 is $2; give a number above 0"; }

# share SETTING VALUE: 0, 0.5 or 1.
share() {
  [[ $2 =~ $decimal ]] && LC_ALL=C awk -v value="$2" 'BEGIN { exit !(value <= 1) }' ||
    refuse "$1 is $2; give a number from 0 to 1"
}

# Print the comment at the beginning of the recipe.
about() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

# read_options OPTION...: the options of recipes that have no others.
fresh=
read_options() {
  local option
  for option; do
    case $option in
      --fresh) fresh=yes ;;
      --dry-run) dry_run=yes ;;
      -h | --help) about; exit ;;
      *) refuse "$option is unknown; the options are --fresh, --dry-run and --help" ;;
    esac
  done
  need_elseq
}

need_elseq() {
  command -v elseq-user-dir >/dev/null ||
    refuse "elseq is not installed; run make setup in $root, or activate its environment"
  user_dir=$(elseq-user-dir)
}

make_work() {
  [[ $work != *[,:$'\n']* ]] ||
    refuse "the folder $work has a comma, a colon or a line end in its path, where fairseq divides paths; name another one"
  mkdir -p "$work" 2>/dev/null || refuse "the folder $work cannot be made; name another one"
}

# A folder that only a mistake names stays.
remove_work() {
  [ -z "$(ls -A "$work" 2>/dev/null)" ] || [ -n "$(find "$work" -maxdepth 1 \( -name "*.done" -o -name "*.begun" \))" ] ||
    refuse "--fresh removes the folder $work, which no recipe has made; empty it, or name another one"
  rm -rf "$work"
}

# Make the work folder, empty after --fresh. A recipe checks its settings before.
begin() {
  [ -z "$dry_run" ] || { echo "Nothing is run. The commands of each stage:"; return; }
  [ -z "$fresh" ] || remove_work
  make_work
}

# stage NAME TITLE COMMAND...: run the command, unless this stage and all before it have finished with the same commands.
# While it runs, $work/NAME.begun has the time and the commands; then $work/NAME.done, also with the files that it has made.
# Where one of them is missing later, only the user knows whether it was still needed. Bash does not stop in it at a part
# that fails: its parts need && or || return.
latest=0 # when the last stage began
stage() {
  local name=$1 title=$2 start=$SECONDS file made; shift 2
  if up_to_date "$name.done" "$@"; then
    echo "== $title: done before"
    while read -r file; do
      [ -e "$work/$file" ] || echo "   $file is missing since; to run this stage again, delete $work/$name.done"
    done < <(sed -n 's/^made: //p' "$work/$name.done")
    latest=$(time_of "$name.done")
    [ -z "$dry_run" ] || "$@"
    return
  fi
  echo "== $title"
  latest=$(date +%s%N)
  if [ -n "$dry_run" ]; then "$@"; return; fi
  rm -f "$work/$name.done"
  { echo "$latest"; wanted "$@"; } >"$work/$name.begun"
  "$@" || refuse "the stage '$name' failed; see the logs in $work and run the same command again"
  made=$(find "$work" -type f -newer "$work/$name.begun" -printf 'made: %P\n')
  echo "$made" >>"$work/$name.begun"
  mv "$work/$name.begun" "$work/$name.done"
  echo "   $((SECONDS - start)) s"
}

# The commands that a stage would run now, and `inputs`: checksums of files that they read and no stage has made.
inputs=
wanted() { echo "$inputs"; (dry_run=yes; "$@"); }

# up_to_date FILE COMMAND...: whether a stage has begun, or is done, with these commands, after all stages before it.
up_to_date() {
  local file=$1; shift
  [ -z "$fresh" ] && [ "$(time_of "$file")" -gt "$latest" ] && [ "$(wanted "$@")" = "$(sed '1d; /^made: /d' "$work/$file")" ]
}

time_of() {
  local first
  { read -r first <"$work/$1"; } 2>/dev/null && [[ $first =~ ^[0-9]+$ ]] && echo "$first" || echo 0
}

# resumed FOLDER NAME TITLE COMMAND...: a stage that goes on from what is in the folder, if it had begun with the same commands.
resumed() {
  local folder=$1; shift
  [ -n "$dry_run" ] || up_to_date "$1.done" "${@:3}" || up_to_date "$1.begun" "${@:3}" || rm -rf "$folder"
  stage "$@"
}

# anew FOLDER NAME TITLE COMMAND...: a stage that begins without the folder, because its log would begin in the middle.
anew() {
  [ -n "$dry_run" ] || rm -f "$work/$2.begun"
  resumed "$@"
}

# All commands of a stage go through these, which print them where `dry_run` is set, and do not run them.
dry_run=

run() { if [ -n "$dry_run" ]; then quoted "$@"; else "$@"; fi; }

# into FILE COMMAND...: its standard output goes to the file.
into() {
  local file=$1; shift
  if [ -n "$dry_run" ]; then echo "$(quoted "$@") > $(quoted "$file")"; else "$@" >"$file"; fi
}

# noted FILE COMMAND...: its standard output goes to the screen and to $work/FILE; with -a at the end of that.
noted() {
  local append=
  [ "$1" != -a ] || { append=-a; shift; }
  local file=$work/$1; shift
  if [ -n "$dry_run" ]; then quoted "$@"; else "$@" | tee $append "$file"; fi
}

# logged NAME COMMAND...: the output goes to $work/NAME.log, and through the function `shown` to the screen.
logged() {
  local log=$work/$1.log; shift
  if [ -n "$dry_run" ]; then quoted "$@"; else "$@" 2>&1 | tee "$log" | "${shown:-validations}"; fi
}

# The lines of fairseq's log about validations, and errors.
validations() { sed -un '/num. shared model params\|valid on\|^elseq: error:/p'; }

quoted() {
  local word line=()
  for word; do [[ $word =~ ^[A-Za-z0-9_./:=,+%@-]+$ ]] && line+=("$word") || line+=("${word@Q}"); done
  echo "${line[*]}"
}

# Whether CUDA has a device that this process may use.
gpu() { [ "${CUDA_VISIBLE_DEVICES-all}" != "" ] && [[ $(nvidia-smi -L 2>/dev/null) = GPU* ]]; }

# pieces [OPTION...]: the subwords of $work/corpus, by default with a new sentencepiece vocabulary.
pieces() { noted pieces.log python "$root/scripts/encode_text.py" "$work/corpus" "$work/pieces" "$@"; }

# binarize [OPTION...]: fairseq-preprocess; one dictionary for both sides, unless the options name dictionaries.
binarize() {
  [ $# -gt 0 ] || set -- --joined-dictionary
  # fairseq-preprocess refuses to replace the files of an earlier run with other settings.
  run rm -rf "$work/data" &&
    logged binarize fairseq-preprocess --source-lang source --target-lang target "$@" --workers 2 \
      --trainpref "$work/pieces/train" --validpref "$work/pieces/valid" --testpref "$work/pieces/test" \
      --destdir "$work/data"
}

# `text`: the folder of Multi30k under ELSEQ_DATA.
use_multi30k() {
  [ -n "${ELSEQ_DATA:-}" ] || refuse "Multi30k is not downloaded; set ELSEQ_DATA to the folder that holds multi30k/train.de.gz," \
    "val.de.gz, test_2016_flickr.de.gz and the same with .en.gz"
  text=$ELSEQ_DATA/multi30k
  local file
  for file in "$text"/{train,val,test_2016_flickr}.{de,en}.gz; do
    [ -e "$file" ] || refuse "$file is missing; set ELSEQ_DATA to the folder that holds multi30k"
  done
}

unpack_multi30k() {
  run mkdir -p "$work/corpus" || return
  local pair
  for pair in train:train val:valid test_2016_flickr:test; do
    into "$work/corpus/${pair#*:}.source" gzip -dc "$text/${pair%:*}.de.gz" &&
      into "$work/corpus/${pair#*:}.target" gzip -dc "$text/${pair%:*}.en.gz" || return
  done
}
