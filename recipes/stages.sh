# For recipes to source: `root` (the checkout), its .venv on the PATH, and resumable stages in the folder `work`.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -d "$root/.venv/bin" ] && export PATH="$root/.venv/bin:$PATH"

# stage NAME TITLE COMMAND...: run the command unless this stage finished before.
stage() {
  local name=$1 title=$2 start=$SECONDS; shift 2
  if [ -e "$work/$name.done" ]; then echo "== $title: done before"; return; fi
  echo "== $title"
  "$@" || { echo "elseq: error: the stage '$name' failed; see the logs in $work and run the same command again" >&2; exit 1; }
  touch "$work/$name.done"
  echo "   $((SECONDS - start)) s"
}
