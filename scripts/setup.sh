#!/usr/bin/env bash
# Set up .venv: torch, then fairseq compiled against it, then elseq. Usage: PYTHON=python3 scripts/setup.sh CONSTRAINTS
# Run it again after an interruption; what is there stays.
set -euo pipefail
cd "$(dirname "$0")/.."
constraints=$(realpath "${1:-constraints.txt}")
log=.venv/setup.log

fail() { echo "elseq: error: $*" >&2; exit 1; }

suitable() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

for python in "${PYTHON:-python3}" python3.12 python3.11 ""; do
  if [ -n "$python" ] && suitable "$python"; then break; fi
done
[ -n "$python" ] || fail "Python 3.11 or 3.12 is needed and none was found; install one, or name it: make setup PYTHON=..."
command -v c++ >/dev/null || fail "fairseq is compiled here and there is no C++ compiler; install one (Debian: apt install g++)"
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
[ -e "$headers/Python.h" ] || fail "fairseq is compiled here and Python's headers are missing from $headers; install them (Debian: apt install python3-dev)"

# A step's output goes to the log; the screen shows that it goes on.
step() {
  local title=$1 start=$SECONDS; shift
  "$@" >>"$log" 2>&1 & local job=$!
  while kill -0 $job 2>/dev/null; do
    [ -t 1 ] && printf '\r%s ... %d s' "$title" $((SECONDS - start))
    sleep 1
  done
  if wait $job; then
    [ -t 1 ] && printf '\r'
    echo "$title: done in $((SECONDS - start)) s"
  else
    echo; tail -n 20 "$log" >&2
    fail "this step failed: $title; its output is in $log; mend it and run the same command again"
  fi
}

if ! [ -x .venv/bin/python ] || ! suitable .venv/bin/python; then
  rm -rf .venv
  "$python" -m venv .venv || fail "$python cannot make a virtual environment; install its venv module (Debian: apt install python3-venv)"
fi
: >"$log"
echo "Setting up .venv with $(.venv/bin/python --version); output goes to $log"
pip=(.venv/bin/python -m pip install --disable-pip-version-check --constraint "$constraints")

# Without a GPU, torch's own index has a build that is ten times smaller than the one on PyPI.
cpu_index=https://download.pytorch.org/whl/cpu
if [ -z "${PIP_EXTRA_INDEX_URL:-}" ] && ! command -v nvidia-smi >/dev/null &&
  "$python" -c "import urllib.request; urllib.request.urlopen('$cpu_index/torch/', timeout=5)" 2>/dev/null; then
  torch_index=(--extra-index-url "$cpu_index")
fi
step "1/3 torch and build tools" "${pip[@]}" ${torch_index[@]+"${torch_index[@]}"} torch numpy cython setuptools wheel
step "2/3 fairseq, compiled here (about 4 minutes)" "${pip[@]}" --no-build-isolation fairseq-fixed==0.12.3.1
step "3/3 elseq" "${pip[@]}" --no-build-isolation --editable '.[test]'
# fairseq asks for torchaudio, which nothing here needs. Beside a torch of another kind it cannot be imported, and
# libraries that try when they see it fail.
.venv/bin/python -c 'import torchaudio' 2>/dev/null || .venv/bin/python -m pip uninstall -q -y torchaudio >>"$log" 2>&1 || true
touch .venv/.ready
