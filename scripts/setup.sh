#!/usr/bin/env bash
# Set up .venv in the checkout: torch, the build tools, fairseq (compiled against that torch), elseq (editable).
# Running it again repairs what an interrupted run left behind. PYTHON and CONSTRAINTS choose the interpreter and the versions.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/end_commands.sh
constraints=${CONSTRAINTS:-constraints.txt}
log=.venv/setup.log
stamp=.venv/elseq.stamp
title= ticker=

fail() { echo "elseq: $*" >&2; exit 1; }

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' >/dev/null 2>&1; }

minor_version() { "$1" -c 'import sys; print(sys.version_info[:2])'; }

same_version() { [ "$(minor_version "$1")" = "$(minor_version "$2")" ]; }

choose_python() {
    local candidate chosen=${PYTHON:-python3} others=
    [ "$chosen" != python3 ] || others="python3.12 python3.11"
    for candidate in "$chosen" $others; do
        supported "$candidate" && echo "$candidate" && return
    done
    fail "Python 3.11 or 3.12 is needed and $chosen is neither: name one with PYTHON=/path/to/python3.12."
}

check_compiler() {
    local candidate include known=(c++ g++ clang++)
    [ -z "${CXX:-}" ] || known=("$CXX")
    for candidate in "${known[@]}"; do
        command -v "${candidate%% *}" >/dev/null && break
        candidate=
    done
    [ -n "$candidate" ] || fail "fairseq is compiled here and needs a C++ compiler; there is no ${CXX:-c++, g++ or clang++}: install g++ or clang++${CXX:+, or unset CXX}."
    include=$("$1" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    # CXX may carry options, hence no quotes.
    printf '#include <Python.h>\n#include <vector>\n' | $candidate -x c++ -fsyntax-only -I "$include" - 2>/dev/null ||
        fail "$candidate cannot compile against $include/Python.h: install Python's headers (python3-dev) and the C++ library."
}

make_venv() {
    rm -f .venv/bin/python* # venv keeps links, also those to another Python or to none
    "$1" -m venv .venv && return
    # Debian's Python comes without ensurepip.
    "$1" -m venv --without-pip .venv
    "$1" -m pip --python .venv/bin/python install pip
}

tick() {
    local started=$SECONDS
    while sleep 1; do
        printf '\r\033[K%s %d s  %s' "$1" $((SECONDS - started)) "$(tail -n 1 "$log" | tr -d '\r' | cut -c1-60)"
    done
}

stop_ticker() {
    [ -n "$ticker" ] || return 0
    kill "$ticker" && wait "$ticker" || true
    ticker=
    printf '\r\033[K'
} 2>/dev/null

step() {
    local started=$SECONDS
    title=$1
    shift
    if [ -t 1 ]; then
        tick "$title" &
        ticker=$!
    else
        printf '%s ' "$title"
    fi
    "$@" >>"$log" 2>&1
    [ -z "$ticker" ] || { stop_ticker && printf '%s ' "$title"; }
    echo "$((SECONDS - started)) s"
    title=
}

finish() {
    end_commands
    stop_ticker
    [ -n "$title" ] || return 0
    exec >&3 2>&3 # those of the step are the log
    echo
    tail -n 15 "$log"
    echo "elseq: \"$title\" did not finish$(reason); all its output is in $log. Run this again to go on from there."
}

reason() {
    # A log on a full disk cannot say so.
    if tail -n 15 "$log" | grep -q 'No space left on device' || ! head -c 65536 /dev/zero >.venv/room; then
        echo ", because the disk is full"
    elif tail -n 15 "$log" | grep -q 'connection broken by'; then
        # pip then says that the versions are in conflict.
        echo ", because the package index was not reached"
    fi
    rm -f .venv/room
} 2>/dev/null

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

install_torch() {
    # Where there is no GPU, PyTorch's own index has a build that is ten times smaller than PyPI's.
    local index=https://download.pytorch.org/whl/cpu
    if [ -z "${PIP_EXTRA_INDEX_URL:-}" ] && ! command -v nvidia-smi >/dev/null &&
        .venv/bin/python -c "import urllib.request; urllib.request.urlopen('$index/torch/', timeout=5)"; then
        pip install --constraint "$constraints" --extra-index-url "$index" torch
    else
        pip install --constraint "$constraints" torch
    fi
}

install() { pip install --no-build-isolation --constraint "$constraints" "$@"; }

install_fairseq() {
    local fairseq
    fairseq=$(grep -o 'fairseq-fixed==[0-9.]*' pyproject.toml)
    # Its CUDA extensions take long to compile and elseq has no use for them; torchaudio, which it asks for, is never imported.
    unset CUDA_HOME
    install --no-deps "$fairseq"
    # What is installed, or in pip's cache, may have been compiled against another torch.
    .venv/bin/python -c 'import torch, alignment_train_cpu_binding' ||
        install --no-deps --force-reinstall --no-cache-dir "$fairseq"
}

install_elseq() {
    install --no-deps --editable .
    .venv/bin/python - >.venv/requirements.txt <<'END'
import re
from importlib.metadata import requires

for requirement in requires("fairseq-fixed") + requires("elseq"):
    needed, _, marker = requirement.partition(";")
    if (not marker or 'extra == "test"' in marker) and not re.match("fairseq-fixed|torchaudio", needed):
        print(needed)
END
    install --requirement .venv/requirements.txt
}

[ -r "$constraints" ] || fail "the constraints file $constraints cannot be read."
python=$(choose_python)
check_compiler "$python"
[ "${PYTHON:-python3}" = python3 ] || ! supported .venv/bin/python || same_version .venv/bin/python "$python" ||
    fail ".venv is of $(.venv/bin/python --version) and $python is $("$python" --version): remove .venv first, by make clean."
echo "Setting up .venv with the versions in $constraints; compiling fairseq takes some minutes."
mkdir -p .venv
rm -f "$stamp"
: >"$log"
exec 3>&2
trap finish EXIT
supported .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1 ||
    step "[1/5] virtual environment of $("$python" --version)" make_venv "$python"
step "[2/5] torch" install_torch
step "[3/5] build tools" pip install --constraint "$constraints" setuptools wheel cython numpy
step "[4/5] fairseq" install_fairseq
step "[5/5] elseq" install_elseq
touch "$stamp"
