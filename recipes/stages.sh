# For recipes to source: `root` (the checkout), its .venv on the PATH, and resumable stages in the folder `work`.
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
