#!/usr/bin/env bash
# Sets up the environment once, then hands over to `python -m spcl_lib reproduce`. See usage below.
# It is written for the bash 3.2 of macOS too.
set -euo pipefail

project=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
env=$project/.venv
log=$project/.setup.log
stamp=$env/.spcl-stamp  # the set-up is finished, from these very files

usage() {
  cat <<'EOF'
Usage: ./reproduce.sh [options]            set up, run all methods, execute all notebooks
       ./reproduce.sh test [pytest args]   set up, run the tests and check every notebook
       ./reproduce.sh --help               this text (sets up nothing)

  --profile smoke    every step, in minutes; the numbers mean nothing
  (no option)        the main job: 7 methods x 3 seeds on the embedded scenes; no download
  --all              every experiment of every data set that is below the data root
  --league           every loss of every paper with the same search; hours
Options:
  --list             show the plan: every step, what is finished, what the rest costs
  --dataset NAME     scenes, voc2007, ...
  --data-root DIR    where real data sets lie (else the variable SPCL_DATA, else data/)
  --profile NAME     how long to train
  --only METHOD ...  some of the methods
  --seeds N ...      other seeds than 0 1 2
  --jobs N           runs side by side
  --force            run again what is already finished; the old results stay until then

Runs that are finished are skipped; a run that was stopped continues from its last checkpoint.
Results: results/index.html (start there), results/summary.csv, results/notebooks/,
results/manifest.json. SPCL_RESULTS=DIR puts them elsewhere, and SPCL_CACHE=DIR what can be made
again (else data/cache).

An active environment (conda's or a virtual one) that has the packages of environment.yml is used as
it is; SPCL_PYTHON=PATH names an interpreter. Else the packages go into .venv, once, with the exact
versions of environment.yml: by uv where it is found, else by pip of Python 3.11 or newer.
EOF
}

say() { printf 'reproduce.sh: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

# Whether an interpreter is new enough and has the modules; prints on stderr what it lacks.
has_packages() {
  "$1" - "${@:2}" >&2 <<'EOF'
import sys
if sys.version_info < (3, 11):
    sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0])
from importlib.util import find_spec
missing = [name for name in sys.argv[1:] if find_spec(name) is None]
sys.exit("packages that it lacks (see environment.yml): " + ", ".join(missing) if missing else 0)
EOF
}

# The pip part of environment.yml, with awk, because there is no YAML library before the set-up.
pins() {
  awk '/^ *- pip:$/ { found = 1; next }
       found { sub(/(^|[ \t])#.*/, ""); sub(/^ *- */, ""); sub(/[ \t\r]+$/, ""); if ($0) print }' \
    "$project/environment.yml"
}

# Prints the first Python that is new enough. 3.11 is preferred: it is the one that is tested.
find_python() {
  local name
  for name in python3.11 python3 python3.12 python3.13 python3.14; do
    if has_packages "$name" venv ensurepip 2>/dev/null; then printf '%s\n' "$name"; return 0; fi
  done
  fail "Python 3.11 or newer with venv is needed (on Debian and Ubuntu: apt install python3-venv)." \
    "Install it, or set SPCL_PYTHON=/path/to/python."
}

logged() {
  printf '\n$ %s\n' "$*" >>"$log"
  # No stdin: a question that is asked into a log file would wait for ever.
  "$@" >>"$log" 2>&1 </dev/null && return 0
  tail -n 20 "$log" | sed 's/^/  | /' >&2
  fail "the set-up stopped at: $* - the whole log is $log; the same command tries again."
}

set_up() {
  local print python
  # The project's path is part of it: a moved folder holds scripts that point to the old one.
  print=$({ printf '%s\n' "$project"; cat "$project"/{environment.yml,pyproject.toml}; } | cksum)
  if [[ -f $stamp && $(<"$stamp") == "$print" ]]; then return 0; fi
  python=$(find_python)
  [[ ! -e $env || -f $env/.spcl-base ]] || fail "$env exists and was not made by this script." \
    "Move it away, or use it as it is: SPCL_PYTHON=$env/bin/python ./reproduce.sh"
  : >"$log"
  say "setting up .venv with $(pins | wc -l | tr -d ' ') pinned packages" \
    "(once; some 5 GB on Linux, a few minutes; log: $log)"
  rm -f -- "$stamp"  # torn off first and put back last
  [[ -x $env/bin/python ]] || logged "$python" -m venv "$env"
  : >"$env/.spcl-base"
  pins >"$env/pins.txt"
  if type -P uv >/dev/null; then
    logged uv pip install --python "$env/bin/python" -r "$env/pins.txt"
  else
    logged "$env/bin/python" -m pip install --progress-bar off -r "$env/pins.txt"
  fi
  logged "$env/bin/python" -m pip install --no-deps --no-build-isolation -e "$project"
  printf '%s\n' "$print" >"$stamp"
}

main() {
  local python modules='torch torchvision PIL matplotlib safetensors tqdm filelock papermill seaborn'
  if [[ ${1:-} == test ]]; then
    modules="$modules pytest nbval xdist"
  elif [[ " $* " == *" -h "* || " $* " == *" --help "* ]]; then
    usage
    return 0
  fi
  export JUPYTER_PREFER_ENV_PATH=1  # else a kernel "python3" in the home folder goes first
  # shellcheck disable=SC2086  # the module names are words
  if [[ -n ${SPCL_PYTHON:-} ]]; then
    python=$SPCL_PYTHON
    has_packages "$python" $modules || fail "SPCL_PYTHON=$python cannot be used as it is."
    export PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH}  # it need not be installed there
  elif [[ -n ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]] && has_packages python $modules 2>/dev/null; then
    python=python
    export PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH}
  else
    set_up
    python=$env/bin/python
    unset PYTHONPATH PYTHONHOME
    export PYTHONNOUSERSITE=1 IPYTHONDIR=$env/ipython  # nothing of the home folder
  fi
  if [[ ${1:-} == test ]]; then
    shift
    cd -- "$project"  # pytest finds its settings here, and what to run unless paths are given
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # two workers, small work
    exec "$python" -m pytest --nbval --nbval-current-env -n 2 --dist loadscope "$@"
  fi
  # -P: a file of the current folder, random.py say, must not stand in for a module.
  exec "$python" -P -m spcl_lib reproduce "$@"
}

# All is read before it starts, so that an update of this file cannot change a run midway.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
