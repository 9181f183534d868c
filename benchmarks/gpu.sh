#!/usr/bin/env bash
# Test and measure on a GPU that is available for a few minutes, the most important steps first. Each step has a time limit
# and passes the time that it does not need to the next. A step that fails or is cut off does not end the others; if one
# fails, the exit code is 1. Results are written as they come, with a summary of all steps. The active python is used.
#
# Usage: benchmarks/gpu.sh [OPTION...]
#   --device NAME    cuda, cuda:1, or cpu, which runs other tests (default: cuda)
#   --dtype NAME     of all measurements (default: float16; on a CPU float32)
#   --small          tiny models, to see whether every step runs
#   --minutes N      for all steps (default: 9)
#   --output FOLDER  for the results (default: OUT, otherwise benchmarks/results/gpu)
#   --archive FILE   one file to copy: a .tgz of that folder, written anew after each step (default: none)
#   --dry-run        print the commands and their time limits, and run nothing
set -uo pipefail
active=$PATH
. "$(dirname "$0")/../recipes/stages.sh"
PATH=$active # not that of .venv

SHARES_OF=540 # the sum of the seconds of all steps
device=cuda dtype= small= minutes=9 archive= output=${OUT:-$root/benchmarks/results/gpu}
while [ $# -gt 0 ]; do
  case $1 in
    --device | --dtype | --minutes | --output | --archive)
      [ $# -gt 1 ] || refuse "$1 needs a value; see --help"
      printf -v "${1#--}" %s "$2"
      shift ;;
    --small) small=yes ;;
    --dry-run) dry_run=yes ;;
    -h | --help) about; exit ;;
    *) refuse "$1 is unknown; the options are --device, --dtype, --small, --minutes, --output, --archive, --dry-run and --help" ;;
  esac
  shift
done
whole_numbers --minutes 1 "$minutes"
[[ $device =~ ^(cpu|cuda(:[0-9]+)?)$ ]] || refuse "--device $device is unknown; give cpu, cuda or cuda:1"
[ -n "$dtype" ] || { [ "$device" = cpu ] && dtype=float32 || dtype=float16; }
one_of --dtype "$dtype" float32 float16 bfloat16
# Relative paths are those of the caller's folder.
[[ $output = /* ]] || output=$PWD/$output
[[ -z $archive || $archive = /* ]] || archive=$PWD/$archive
cd "$root" || exit
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

summary=$output/summary.md
allowed=0 # seconds from the beginning of the script to the end of the step
failed=()
command -v python >/dev/null && python=python || python=python3

# step NAME SECONDS COMMAND...: its output goes to NAME.log, its results to the folder NAME. A step whose output does not have
# `proof` has failed: of tests that are all skipped the exit code says nothing.
proof=
step() {
  local name=$1 share=$2 limit start=$SECONDS status ended figure; shift 2
  allowed=$((allowed + share * minutes * 60 / SHARES_OF))
  limit=$((allowed - SECONDS))
  if [ -n "$dry_run" ]; then
    echo "$name, $((share * minutes * 60 / SHARES_OF)) s: $(quoted "$@")"
    return
  fi
  rm -f "$output/$name.log" # of a run before
  if [ "$limit" -lt 1 ]; then
    status=skipped
  else
    echo "== $name, $limit s at most"
    # In the background a shell ignores INT, and the step is killed: the shell's message about this is not shown.
    { timeout --signal INT --kill-after 5 "$limit" "$@" >"$output/$name.log" 2>&1; } 2>/dev/null
    status=$?
    [[ $status =~ ^(0|124|137)$ && -n $proof ]] && ! grep -qaE "$proof" "$output/$name.log" && status="nothing passed"
  fi
  case $status in
    0) ended="finished" ;;
    124 | 137) ended="cut off" ;;
    skipped) ended="not begun" ;;
    *) ended="failed ($status)" failed+=("$name") ;;
  esac
  # A progress bar overwrites its line.
  figure=$(tr '\r|' '\n ' <"$output/$name.log" 2>/dev/null |
    grep -aE '[0-9] samples/s|[0-9] microseconds per token|[GM]iB$|passed|failed|skipped|error' |
    grep -av 'run/s' | tail -n 1 | sed 's/^ *//' | cut -c 1-160)
  echo "   $ended after $((SECONDS - start)) s: $figure"
  echo "| $name | $((SECONDS - start)) | $ended | $figure |" >>"$summary"
  pack
}

# Write the archive, which is complete at any time. It may be in the folder: tar leaves out both its names.
pack() {
  [ -n "$archive" ] || return 0
  tar -cz --exclude "./$(basename "$archive")*" -C "$output" . >"$archive.part" && mv "$archive.part" "$archive"
}

# benchmark NAME SECONDS OPTION...: elseq-benchmark
benchmark() {
  local name=$1 share=$2; shift 2
  step "$name" "$share" $python -m elseq.cli.benchmark "$@" --repeats 1 --device "$device" --dtype "$dtype" \
    --output "$output/$name"
}

# of_paper NAME SECONDS MODES OPTION...: elseq-benchmark el-attention. What a limit may cut off comes last among the modes.
of_paper() {
  local name=$1 share=$2 modes=$3; shift 3
  benchmark "$name" "$share" el-attention --modes "$modes" "$@" ${small:+--tiny}
}

# checks NAME SECONDS ARGUMENT...: tests, in their own process: after an illegal access, a process cannot use its GPU. On a
# GPU all those that need one: with --quick nothing starts a process, and without one Triton cannot compile. The times that
# they measure, of kernels and methods, are not those by which the measurements choose.
checks() {
  local name=$1 share=$2; shift 2
  XDG_CACHE_HOME=$scratch proof='[1-9][0-9]* passed' step "$name" "$share" \
    $python -m pytest -q -p no:cacheprovider "${chosen[@]}" "$@"
}

if [ -z "$dry_run" ]; then
  mkdir -p "$output" 2>/dev/null || refuse "--output $output cannot be made; name another folder"
  [ -z "$archive" ] || { mkdir -p "$(dirname "$archive")" && : >"$archive"; } 2>/dev/null ||
    refuse "--archive $archive cannot be written; name another file"
  # This also brings the packages from the disk before a step needs them.
  { [ "$device" = cpu ] || nvidia-smi -L; $python -c 'import sys, torch, elseq; print("Python", sys.version.split()[0], "torch", torch.__version__)'; } \
    >"$output/machine.txt" 2>&1
  { cat "$output/machine.txt"; printf '\n| step | seconds | it | last figure |\n|---|---|---|---|\n'; } >"$summary"
fi

# Options of the device, and of a small run.
scratch=$(mktemp -d)
trap 'end_commands; rm -rf "$scratch"' EXIT
workers=() # Triton compiles a kernel for each case, on one core
if [ "$device" = cpu ]; then chosen=(--quick) more=(tests/generation/test_planner.py)
else
  chosen=(-m gpu) more=(tests/test_kernel_trials.py tests/attention/test_top_k.py
    tests/generation/test_transfers.py tests/generation/test_device.py tests/system/test_gpu.py)
  $python -c 'import xdist' 2>/dev/null && workers=(--numprocesses 6)
fi
batches=32,128,320 most=1024 gpt2_most=64 tiny=() length=65536
[ -z "$small" ] || { batches=2,3 most=3 gpt2_most=3 tiny=(--tiny) length=32; }
cnn_dm=(--models bart_large_cnn_dm --searches beam --no-repeat-ngram-size 3)

checks kernel_flash_decoding 50 "${workers[@]}" tests/attention/kernels/test_flash_decoding.py
checks kernel_reorder 20 tests/attention/kernels/test_reorder.py
checks kernel_best_tokens 15 tests/generation/kernels/test_best_tokens.py
checks tests 55 "${more[@]}"
of_paper bart_large 165 el,stock-shared,huggingface,ctranslate2,kv,auto,stock-copied --tables batch "${cnn_dm[@]}" \
  --batch-sizes "$batches" --memory-cap device
of_paper nvidia 45 kv,el,huggingface,ctranslate2,stock-copied --tables nvidia
of_paper bart_large_16gb 60 el,stock-copied,huggingface,kv --tables speed "${cnn_dm[@]}" --memory-cap 16GB --most "$most"
benchmark multi_query 70 multi-query --variants multi-head,multi-query --columns greedy,beam "${tiny[@]}"
of_paper gpt2 40 kv,stock-copied,el,huggingface --tables speed --models gpt2_124m --searches beam --memory-cap device \
  --most "$gpt2_most"
benchmark top_k 20 top-k --what attention --methods top-k,sdpa --lengths "$length" --seconds-limit 5 "${tiny[@]}"

[ -z "$dry_run" ] || exit 0
[ ${#failed[@]} = 0 ] || printf '\nFailed: %s. Their logs say why.\n' "${failed[*]}" >>"$summary"
pack
echo; cat "$summary"; echo; echo "written: $output"
[ ${#failed[@]} = 0 ]
