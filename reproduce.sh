#!/usr/bin/env bash
# Sets up the environment once, then hands over to `python -m spcl_lib reproduce`. See usage below.
# It is written for the bash 3.2 of macOS too.
set -euo pipefail

project=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# What must outlive an environment that is thrown away: the lock, the log, notes of what is ours.
state=$project/.setup
log=$state/log.txt
lock=$project/.locked.txt  # for uv: the pins, all that they need, and the hashes of their files
stamp=.spcl-stamp   # in an environment: finished, from these very files
base_note=.spcl-base  # in an environment: the interpreter is in place, the packages may not be

usage() {
  cat <<'EOF'
Usage: ./reproduce.sh [options]            set up, run all methods, execute all notebooks
       ./reproduce.sh test [pytest args]   set up, run the tests and check every notebook
       ./reproduce.sh site [--out DIR] [--repository URL]
                                           set up, make a website of all notebooks: results/site
       ./reproduce.sh --help               this text (sets up nothing)

Three sizes; each prints its whole cost before it starts:
  --profile smoke    every step, in minutes; the numbers mean nothing
  (no option)        the main job: 7 methods x 3 seeds on the embedded scenes; no download
  --all              every experiment of every data set that is below the data root
  --league           every loss of every paper with the same search (scenes, voc2007, coco18); hours
                     (with --kept-search: the kept search's choices, the final runs only, half the
                     cost; with --full-training --dataset voc2007: its best with the whole network)
Options:
  --list             show the plan: every step, what is finished, what the rest costs
  --dataset NAME     scenes, voc2007, ...
  --data-root DIR    where real data sets lie (else the variable SPCL_DATA, else data/)
  --profile NAME     how long to train
  --only METHOD ...  some of the methods
  --seeds N ...      other seeds than 0 1 2
  --jobs N           runs side by side
  --force            run again what is already finished; the old results stay until then
  --check            compare all cached files with their checksums and remove the damaged ones

Runs that are finished are skipped; a run that was stopped continues from its last checkpoint.
Results: results/index.html (start there), results/summary.csv, results/notebooks/,
results/manifest.json. SPCL_RESULTS=DIR puts them elsewhere, and SPCL_CACHE=DIR what can be made
again (else data/cache).

The set-up happens once, with the exact versions of environment.yml: in .env/ when micromamba, mamba
or conda is found, else in .venv/ with Python 3.11 or newer. Where uv is found, it installs them, and
compares every file with its hash in .locked.txt. Variables that change this:
  SPCL_ENV=venv      do not use conda although it is there (or SPCL_ENV=conda: do not use venv)
  SPCL_PYTHON=PATH   no set-up: use this interpreter, with the packages that it has
EOF
}

say() { printf 'reproduce.sh: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

# --- environment.yml ------------------------------------------------------------------------------

# Prints one list of environment.yml: channels, conda (the dependencies but pip's), or pip.
# With awk, because there is no YAML library before there is an environment.
items() {
  awk -v wanted="$1" '
    { sub(/(^|[ \t])#.*/, ""); sub(/[ \t\r]+$/, "") }
    /^$/ { next }
    { indent = match($0, /[^ ]/) }
    /^[a-z]/ { part = $0; sub(/:.*/, "", part); if (part == "dependencies") part = "conda"; next }
    /^ *- *pip:$/ { part = "pip"; pip_indent = indent; next }
    part == "pip" && indent <= pip_indent { part = "conda" }
    part == wanted { sub(/^ *- */, ""); print }
  ' "$project/environment.yml"
}

# The project's path is part of it: a folder that was moved or copied holds scripts and an editable
# install that point to the old place.
fingerprint() {
  { printf '%s\n' "$project"; cat -- "$project/environment.yml" "$project/pyproject.toml"; } | cksum
}

is_ready() {
  [[ -x $1/bin/python && -f $1/$stamp && $(<"$1/$stamp") == "$(fingerprint)" ]]
}

# --- which interpreter ----------------------------------------------------------------------------

# Prints the quickest that is there. Where a tool is a function of the person's shell, which a
# script does not see, its program is named by MAMBA_EXE or CONDA_EXE.
find_conda() {
  local tool
  for tool in "${MAMBA_EXE:-}" micromamba mamba conda "${CONDA_EXE:-}"; do
    if [[ -n $tool ]] && type -P "$tool"; then return 0; fi
  done
  return 1
}

# Prints the first Python that is new enough. 3.11 is preferred: it is the one that is tested.
find_python() {
  local name version found=''
  for name in python3.11 python3 python3.12 python3.13 python3.14; do
    type -P "$name" >/dev/null || continue
    version=$("$name" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) ||
      continue
    found="$found $name is $version;"
    "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || continue
    "$name" -c 'import venv, ensurepip' 2>/dev/null ||
      fail "$name ($version) cannot make a virtual environment: venv or ensurepip is missing." \
        "On Debian and Ubuntu: apt install $name-venv"
    printf '%s\n' "$name"
    return 0
  done
  fail "Python 3.11 or newer is needed (${found:- no python3 was found;} neither conda nor" \
    "micromamba was used). Install one of them, or set SPCL_PYTHON=/path/to/python."
}

# The interpreter of a person who manages the environment: check it, change nothing.
own_python() {
  local python
  python=$(type -P "$SPCL_PYTHON") || fail "SPCL_PYTHON=$SPCL_PYTHON is not a program."
  [[ $python == /* ]] || python=$PWD/$python
  "$python" - "$@" >&2 <<'EOF' || fail "SPCL_PYTHON=$SPCL_PYTHON cannot be used as it is."
import sys
if sys.version_info < (3, 11):
    sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0])
from importlib.util import find_spec
missing = [name for name in sys.argv[1:] if find_spec(name) is None]
sys.exit("packages that it lacks (see environment.yml): " + ", ".join(missing) if missing else 0)
EOF
  printf '%s\n' "$python"
}

# --- the set-up -----------------------------------------------------------------------------------

logged() {
  printf '\n$ %s\n' "$*" >>"$log"
  # No stdin: a question that is asked into a log file would wait for ever.
  "$@" >>"$log" 2>&1 </dev/null && return 0
  tail -n 20 "$log" | sed 's/^/  | /' >&2
  fail "the set-up stopped at: $* - the whole log is $log; the same command tries again."
}

# Replaces what is left of an environment of ours, and nothing that somebody else put there.
clear_place() {
  local env=$1 ours=$state/ours${1##*/}
  if [[ -e $env || -L $env ]] && [[ ! -e $ours && ! -e $env/$base_note ]]; then
    fail "$env exists and was not made by this script. Move it away, or use it as it is:" \
      "SPCL_PYTHON=$env/bin/python ./reproduce.sh"
  fi
  : >"$ours"
  rm -rf -- "$env"
}

make_conda() {
  local tool=$1 env=$2 item args=()
  while IFS= read -r item; do args+=(--channel "$item"); done < <(items channels)
  while IFS= read -r item; do args+=("$item"); done < <(items conda)
  # Not `env create --file`: this form is the same in conda, mamba and micromamba, and leaves the
  # pip part to the one code path that venv takes too.
  logged "$tool" create --yes --prefix "$env" --override-channels "${args[@]}"
}

# An interpreter with pip in $env: the one that is there, if it runs and the same lines made it.
make_base() {
  local tool=$1 env=$2 note python=''
  note="$project $([[ -z $tool ]] || items conda)"
  if [[ -f $env/$base_note && $(<"$env/$base_note") == "$note" ]] &&
    "$env/bin/python" -m pip --version >/dev/null 2>&1; then
    return 0
  fi
  [[ -n $tool ]] || python=$(find_python)
  clear_place "$env"
  if [[ -n $tool ]]; then make_conda "$tool" "$env"; else logged "$python" -m venv "$env"; fi
  printf '%s\n' "$note" >"$env/$base_note"
  rm -f -- "$state/ours${env##*/}"  # from here on the note in the environment says whose it is
}

# Whether the lock has every pin: not after somebody has changed environment.yml and not the lock.
is_locked() {
  [[ -f $lock ]] && awk '
    NR == FNR { if (/==/) locked[$1] = 1; next }
    !($1 in locked) { missing = 1 }
    END { exit missing }
  ' "$lock" "$state/requirements.txt"
}

install_packages() {
  local env=$1 print=$2
  # Torn off first and put back last, whole: an environment broken in the middle has no stamp.
  rm -f -- "$env/$stamp"
  items pip >"$state/requirements.txt"
  if type -P uv >/dev/null && is_locked; then
    logged uv pip install --python "$env/bin/python" --require-hashes -r "$lock"
  else
    logged "$env/bin/python" -m pip install --progress-bar off -r "$state/requirements.txt"
  fi
  logged "$env/bin/python" -m pip install --no-deps --no-build-isolation -e "$project"
  printf '%s\n' "$print" >"$env/$stamp.new"
  mv -f -- "$env/$stamp.new" "$env/$stamp"
}

# Sets $env to a finished environment.
set_up() {
  local tool='' print places started=$SECONDS
  case ${SPCL_ENV:-} in
    conda) places=(.env) ;;
    venv) places=(.venv) ;;
    '') places=(.env .venv) ;;
    *) fail "SPCL_ENV=$SPCL_ENV is unknown: use conda or venv." ;;
  esac
  for env in "${places[@]/#/$project/}"; do
    if is_ready "$env"; then return 0; fi
  done
  if [[ ${SPCL_ENV:-} != venv ]]; then tool=$(find_conda) || tool=''; fi
  [[ -n $tool || ${SPCL_ENV:-} != conda ]] || fail "SPCL_ENV=conda, but no conda was found."
  if [[ -n $tool ]]; then env=$project/.env; else env=$project/.venv; fi

  mkdir -p -- "$state"
  if type -P flock >/dev/null; then  # macOS has none; there, start one at a time
    exec 9>"$state/lock"
    flock -n 9 || { say "another set-up is at work here; waiting for it"; flock 9; }
  fi
  if ! is_ready "$env"; then
    : >"$log"
    print=$(fingerprint)  # before, so that a file edited meanwhile counts as new
    say "setting up ${env##*/} with $(items pip | wc -l | tr -d ' ') pinned packages" \
      "(once; some 5 GB on Linux, a few minutes; log: $log)"
    make_base "$tool" "$env"
    install_packages "$env" "$print"
    say "set-up finished in $((SECONDS - started)) s"
  fi
  exec 9>&-
}

# --- main -----------------------------------------------------------------------------------------

# What a person has set for other Python work must not leak into these results.
shield() {
  export JUPYTER_PREFER_ENV_PATH=1         # else a kernel "python3" in the home folder goes first
  export IPYTHONDIR=$state/ipython         # no start-up files that print into checked outputs
  mkdir -p -- "$IPYTHONDIR" 2>/dev/null || true  # else IPython warns, into every notebook
  if [[ -n ${SPCL_PYTHON:-} ]]; then
    export PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH}  # it need not be installed there
    return 0
  fi
  unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX
  export PYTHONNOUSERSITE=1                # no other versions from ~/.local
  export PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
}

main() {
  local python env arg modules='torch torchvision numpy PIL matplotlib safetensors tqdm filelock'
  if [[ ${1:-} == test ]]; then
    modules="$modules pytest nbval"
  else
    if [[ ${1:-} == site ]]; then modules="$modules sphinx myst_nb furo"; fi
    for arg in "$@"; do
      case $arg in -h | --help) usage; return 0 ;; esac
    done
  fi

  shield
  if [[ -n ${SPCL_PYTHON:-} ]]; then
    # shellcheck disable=SC2086  # the module names are words
    python=$(own_python $modules)
  else
    set_up
    python=$env/bin/python
  fi

  if [[ ${1:-} == test ]]; then
    shift
    cd -- "$project"  # pytest finds its settings here, and what to run unless paths are given
    # Two threads, wherever it runs: small work gains nothing from more.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
    exec "$python" -m pytest --nbval --nbval-current-env "$@"
  fi
  # -P: a file of the current folder, random.py say, must not stand in for a module.
  if [[ ${1:-} == site ]]; then exec "$python" -P -m spcl_lib "$@"; fi
  exec "$python" -P -m spcl_lib reproduce "$@"
}

# All is read before it starts, so that an update of this file cannot change a run midway.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
