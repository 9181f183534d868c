#!/usr/bin/env bash
# Everything that is to be known of a GPU which is at hand for minutes, in the order of its worth. Each step has a time limit;
# what it leaves of that is the next one's. A step that fails or is cut off does not end the others. Results are on the disk
# as they come, with a summary of all steps. It uses the python that is active.
#
# Usage: benchmarks/gpu.sh [OPTION...]
#   --device NAME    cuda, cuda:1, or cpu, where other tests are run (default: cuda)
#   --dtype NAME     of all measurements (default: float16; on a CPU float32)
#   --small          tiny models, to see whether all of it runs
#   --minutes N      for all of it (default: 9)
#   --output FOLDER  for the results (default: OUT, otherwise benchmarks/results/gpu)
#   --dry-run        print the commands and their time limits, and run nothing
set -uo pipefail
active=$PATH
. "$(dirname "$0")/../recipes/stages.sh"
PATH=$active # not that of .venv

SHARES_OF=540 # seconds, the sum of those below
device=cuda dtype= small= minutes=9 output=${OUT:-$root/benchmarks/results/gpu}
while [ $# -gt 0 ]; do
  case $1 in
    --device | --dtype | --minutes | --output)
      [ $# -gt 1 ] || refuse "$1 needs a value; see --help"
      printf -v "${1#--}" %s "$2"
      shift ;;
    --small) small=yes ;;
    --dry-run) dry_run=yes ;;
    -h | --help) about; exit ;;
    *) refuse "$1 is unknown; the options are --device, --dtype, --small, --minutes, --output, --dry-run and --help" ;;
  esac
  shift
done
whole_numbers --minutes 1 "$minutes"
[[ $device =~ ^(cpu|cuda(:[0-9]+)?)$ ]] || refuse "--device $device is unknown; give cpu, cuda or cuda:1"
[ -n "$dtype" ] || { [ "$device" = cpu ] && dtype=float32 || dtype=float16; }
one_of --dtype "$dtype" float32 float16 bfloat16
cd "$root" || exit
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

summary=$output/summary.md
allowed=0 # seconds from the beginning to the end of the step

# step NAME SECONDS COMMAND...: its output goes to NAME.log, its results to the folder NAME.
step() {
  local name=$1 share=$2 limit start=$SECONDS status ended figure; shift 2
  allowed=$((allowed + share * minutes * 60 / SHARES_OF))
  limit=$((allowed - SECONDS))
  if [ -n "$dry_run" ]; then
    echo "$name, $((share * minutes * 60 / SHARES_OF)) s: $(quoted "$@")"
    return
  fi
  if [ "$limit" -lt 1 ]; then
    status=124
  else
    echo "== $name, $limit s at most"
    # Where a shell runs this in the background, INT is not heard; what is killed then, the shell need not tell.
    { timeout --signal INT --kill-after 5 "$limit" "$@" >"$output/$name.log" 2>&1; } 2>/dev/null
    status=$?
  fi
  case $status in
    0) ended="finished" ;;
    124 | 137) ended="cut off" ;;
    *) ended="failed ($status)" ;;
  esac
  # A bar of progress is written over and over in one line.
  figure=$(tr '\r|' '\n ' <"$output/$name.log" 2>/dev/null | grep -aE 'samples/s|per token|[GM]iB$|passed|failed|error' |
    grep -av 'run/s' | tail -n 1 | sed 's/^ *//' | cut -c 1-160)
  echo "   $ended after $((SECONDS - start)) s: $figure"
  echo "| $name | $((SECONDS - start)) | $ended | $figure |" >>"$summary"
}

# benchmark NAME SECONDS OPTION...: of elseq-benchmark
benchmark() {
  local name=$1 share=$2; shift 2
  step "$name" "$share" python -m elseq.cli.benchmark "$@" --device "$device" --dtype "$dtype" --output "$output/$name"
}

# of_paper NAME SECONDS OPTION...: of elseq-benchmark el-attention. Programs of their own come last: to export takes long.
of_paper() {
  local name=$1 share=$2; shift 2
  benchmark "$name" "$share" el-attention "$@" ${small:+--small}
}

[ -n "$dry_run" ] || mkdir -p "$output" 2>/dev/null || refuse "--output $output cannot be made; name another folder"
if [ -z "$dry_run" ]; then
  { nvidia-smi -L; python -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)'; } \
    >"$output/machine.txt" 2>&1
  { cat "$output/machine.txt"; printf '\n| step | seconds | it | last figure |\n|---|---|---|---|\n'; } >"$summary"
fi

# Options that a small run has otherwise.
if [ "$device" = cpu ]; then tests=(--quick) more=(tests/generation/test_planner.py)
else tests=(-m gpu) more=(tests --ignore tests/attention/kernels); fi
batches=32,128,320 most=1024 gpt2_most=128 tiny=() lengths=4096,16384,65536
[ -z "$small" ] || { batches=2,3 most=3 gpt2_most=3 tiny=(--tiny) lengths=32; }
own=el,kv,stock-shared,stock-copied

step kernels 45 python -m pytest -q -p no:cacheprovider "${tests[@]}" tests/attention/kernels
step tests 45 python -m pytest -q -p no:cacheprovider "${tests[@]}" "${more[@]}"
of_paper bart_large 180 --tables batch --batch-sizes "$batches" --memory-cap device --modes "$own,auto,ctranslate2,huggingface"
of_paper nvidia 65 --tables nvidia --modes el,kv,stock-copied
of_paper bart_large_16gb 85 --tables speed --models bart_large_cnn_dm --searches beam --memory-cap 16GB --most "$most" \
  --modes "$own"
benchmark multi_query 45 multi-query --variants multi-head,multi-query --columns greedy,beam "${tiny[@]}"
of_paper gpt2 50 --tables speed --models gpt2_124m --searches beam --memory-cap device --most "$gpt2_most" --modes el,kv,huggingface
benchmark top_k 25 top-k --what attention --lengths "$lengths" --repeats 1 --seconds-limit 5 "${tiny[@]}"

[ -n "$dry_run" ] || { echo; cat "$summary"; echo; echo "written: $output"; }
