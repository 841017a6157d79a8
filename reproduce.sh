#!/usr/bin/env bash
# Finds or makes an environment, then runs `python -m spcl_lib reproduce`. For bash 3.2 or newer.
set -euo pipefail
project=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
env=$project/.venv
stamp=$env/.spcl-stamp  # the environment is whole, and made from these very files
setup=$project/.setup   # log, list of pins, IPython's folder
log=$setup/log.txt

usage() {
  cat <<'EOT'
Usage: ./reproduce.sh [options]            set up, run all methods, execute all notebooks
       ./reproduce.sh test [pytest args]   set up, run the tests and check every notebook
Without options: 7 methods x 3 seeds on the embedded scenes; nothing is downloaded but packages.
  --all              every experiment of every data set that is below the data root
  --league           every loss of every paper with the same search (scenes, voc2007, coco18); hours
  --list             show the plan: every step, what is finished, what the rest costs
  --dataset NAME     scenes, voc2007, ...
  --data-root DIR    where real data sets lie (else the variable SPCL_DATA, else data/)
  --profile NAME     how long to train; smoke: every step in minutes, the numbers mean nothing
  --only METHOD ...  some of the methods
  --seeds N ...      other seeds than 0 1 2
  --jobs N           runs side by side
  --force            run again what is already finished

Results: results/index.html (start there); SPCL_RESULTS=DIR puts them elsewhere. Finished runs are
skipped; a run that was stopped goes on from its last checkpoint.
Environment: the active one (venv or conda) if it has the packages. Else .venv is made once with uv
or pip, from the pins of environment.yml. SPCL_PYTHON=PATH takes that interpreter as it is.
EOT
}

fail() { printf 'reproduce.sh: %s\n' "$*" >&2; exit 1; }

# Prints what an interpreter lacks; nothing if it has everything.
lacking() {
  "$1" -c '
import sys
from importlib.util import find_spec
missing = [name for name in sys.argv[1:] if find_spec(name) is None]
print(*(missing if sys.version_info >= (3, 11) else ["Python 3.11 or newer"]), sep=", ", end="")
  ' "${@:2}" 2>/dev/null || echo "a Python that starts"
}

logged() {
  printf '\n$ %s\n' "$*" >>"$log"
  "$@" >>"$log" 2>&1 </dev/null && return 0
  tail -n 20 "$log" | sed 's/^/  | /' >&2
  fail "the set-up stopped at: $* - the whole log is $log; the same command tries again."
}

find_python() {
  local name
  for name in python3.11 python3 python3.12 python3.13 python3.14; do
    "$name" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    echo "$name"; return 0
  done
  fail "Python 3.11 or newer with its module venv is needed (on Debian and Ubuntu: apt install" \
    "python3-venv). Install it or uv, or set SPCL_PYTHON=/path/to/python."
}

set_up() {
  local print python install pins=$setup/requirements.txt
  # The path counts too: scripts in a folder that was moved point to the old place.
  print=$(cd -- "$project" && { pwd -P; cat environment.yml pyproject.toml; } | cksum)
  if [[ -x $env/bin/python && -f $stamp && $(<"$stamp") == "$print" ]]; then return 0; fi
  mkdir -p -- "$setup"
  sed -n 's/^ *- *\([a-z0-9-]*==[^ #]*\).*/\1/p' "$project/environment.yml" >"$pins"
  echo "setting up .venv (once; some 5 GB on Linux, minutes; log: $log)" | tee -- "$log" >&2
  rm -f -- "$stamp"
  if type -P uv >/dev/null; then
    logged uv venv --allow-existing --python '>=3.11' "$env"
    install=(uv pip install --python "$env/bin/python")
  else
    python=$(find_python)
    logged "$python" -m venv "$env"
    install=("$env/bin/python" -m pip install --progress-bar off)
  fi
  logged "${install[@]}" -r "$pins"
  logged "${install[@]}" --no-deps --no-build-isolation -e "$project"
  printf '%s\n' "$print" >"$stamp"
}

main() {
  local arg active missing python='' modules='torch torchvision safetensors seaborn papermill nbconvert ipykernel'
  for arg in "$@"; do
    case "$1 $arg" in "test "*) ;; *" -h" | *" --help") usage; return 0 ;; esac
  done
  [[ ${1:-} != test ]] || modules="$modules pytest xdist nbval"
  # shellcheck disable=SC2086  # the module names are words
  if [[ -n ${SPCL_PYTHON:-} ]]; then
    missing=$(lacking "$SPCL_PYTHON" $modules)
    [[ -z $missing ]] || fail "SPCL_PYTHON=$SPCL_PYTHON lacks $missing (see environment.yml)."
    python=$SPCL_PYTHON
  else
    for active in "${CONDA_PREFIX:-}" "${VIRTUAL_ENV:-}"; do  # a venv in a conda is the later one
      [[ -z $active || -n $(lacking "$active/bin/python" $modules) ]] || python=$active/bin/python
    done
  fi
  if [[ -z $python ]]; then
    unset PYTHONPATH PYTHONHOME
    export PYTHONNOUSERSITE=1  # no other versions from ~/.local
    set_up
    python=$env/bin/python
  fi
  [[ $python != */* || $python == /* ]] || python=$PWD/$python  # `test` changes the folder
  export PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH}
  # What a person has set up for other work must not leak into the notebooks.
  export JUPYTER_PREFER_ENV_PATH=1 IPYTHONDIR=$setup/ipython
  mkdir -p -- "$IPYTHONDIR" 2>/dev/null || true
  if [[ ${1:-} == test ]]; then
    cd -- "$project"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # two workers share the cores
    exec "$python" -m pytest -n 2 --dist loadscope --nbval --nbval-current-env "${@:2}"
  fi
  # A file of the current folder, random.py say, must not stand in for a module.
  export PYTHONSAFEPATH=1
  exec "$python" -m spcl_lib reproduce "$@"
}

main "$@"
