#!/usr/bin/env bash
# Everything there is to check on a machine with a GPU, in one go: build, tests on CUDA, compute-sanitizer, benchmarks.
#
#     bench/gpu_check.sh [FOLDER]      (default: bench/results/<date>-<gpu>-<commit>)
#
# Builds in place with this machine's own python3, installs nothing, needs no network and changes no setting of the GPU.
# A step that fails does not stop the others; the exit status says whether any did. Without a GPU it says so and runs
# what runs on a CPU. In the environment, PYTHON names another interpreter, N2N_CHECK_TESTS other tests (arguments of
# pytest), and N2N_COMMIT the commit of a tree that is no repository.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD/python:$PWD PYTHONUNBUFFERED=1
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
# The cache of Triton's compiled kernels starts empty, so that this run says whether they compile here.
export TRITON_CACHE_DIR=$scratch/triton

gpu=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")')
commit=${N2N_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}
export commit
name=$(echo "${gpu:-no-gpu}" | tr -cs 'A-Za-z0-9\n' '-')
out=${1:-bench/results/$(date -u +%Y%m%d)-$name-$commit}
mkdir -p "$out" || exit 1

failed=()
# step NAME SECONDS COMMAND...: runs the command with a time limit, or with the time that is left if that is less; what it
# prints goes to log.txt, its end is shown.
step() {
  local name=$1 limit=$2 status result start=$SECONDS
  shift 2
  if [ $((deadline - SECONDS)) -lt "$limit" ]; then limit=$((deadline - SECONDS)); fi
  if [ "$limit" -lt 5 ]; then
    echo "$name: left out, there is no time" | tee -a "$out/steps.txt"
    failed+=("$name")
    return
  fi
  echo "== $name: $*" | tee -a "$out/log.txt"
  timeout --kill-after=10 "$limit" "$@" >"$scratch/log" 2>&1
  status=$?
  cat "$scratch/log" >>"$out/log.txt"
  tail -n "${lines:-15}" "$scratch/log"
  result="$name: exit status $status after $((SECONDS - start)) s"
  echo "== $result" | tee -a "$out/log.txt"
  echo "$result" >>"$out/steps.txt"
  [ "$status" -eq 0 ] || failed+=("$name")
}

describe() {
  echo "commit: $commit"
  git status --short 2>/dev/null
  uname -a
  nvidia-smi 2>/dev/null || echo "no nvidia-smi"
  nvcc --version 2>/dev/null || echo "no nvcc"
  "$PYTHON" -c 'import json; from net2net.environment import environment; print(json.dumps(environment(), indent=1))'
}
build() {
  "$PYTHON" setup.py build_ext --inplace && return
  # What setup.py does, for a machine whose setuptools is too old to read pyproject.toml.
  echo "setup.py failed; driving CMake without it"
  rm -rf build/gpu_check
  cmake -S . -B build/gpu_check -G Ninja -DCMAKE_BUILD_TYPE=Release -DN2N_CUDA="$N2N_CUDA" \
    -DPython_EXECUTABLE="$("$PYTHON" -c 'import sys; print(sys.executable)')" \
    -DN2N_OUTPUT_DIR="$PWD/n2n_kernels" &&
    cmake --build build/gpu_check
}
export -f describe build
export PYTHON

: >"$out/steps.txt"
: >"$out/log.txt"
if [ -n "$gpu" ]; then
  unset TRITON_INTERPRET
  export N2N_CUDA=ON
  test_seconds=170 deadline=530
else
  echo "== no CUDA device: the CPU parts only" | tee -a "$out/steps.txt"
  export N2N_CUDA=AUTO
  test_seconds=1200 deadline=7200
fi

step build 100 bash -c build
step machine 20 bash -c describe

tests=(tests -m "not slow and not big")
[ -n "${N2N_CHECK_TESTS:-}" ] && read -ra tests <<<"$N2N_CHECK_TESTS"
# Several processes, where pytest can; its benchmark plugin, which these tests do not need, would warn of them.
parallel=()
"$PYTHON" -c 'import xdist' 2>/dev/null && parallel=(-n 6)
pytest=("$PYTHON" -m pytest -q -p no:cacheprovider --durations=10)
step tests "$test_seconds" "${pytest[@]}" -p no:benchmark "${parallel[@]}" "${tests[@]}"

# What has not been measured a while before the step's end is skipped, so that there are results of the rest.
if [ -n "$gpu" ]; then
  lines=60 step bench 165 "$PYTHON" -m net2net bench --check --time-limit 125 --out "$out"
else
  lines=60 step bench 600 "$PYTHON" -m net2net bench --quick --time-limit 500 --out "$out"
fi

if [ -n "$gpu" ]; then
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
  if [ -n "$sanitizer" ]; then
    for check in memcheck racecheck; do
      step "$check" 55 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$check" --error-exitcode 1 \
        "$PYTHON" bench/small_ops.py
    done
  else
    echo "compute-sanitizer: not installed" | tee -a "$out/steps.txt"
  fi
  ncu=$(command -v ncu || ls /usr/local/cuda*/bin/ncu 2>/dev/null | head -n 1)
  if [ -n "$ncu" ]; then
    # A few tensors: it runs the kernel again and again, and keeps what it overwrites. Clocks are left as they are.
    lines=60 step ncu 40 "$ncu" --clock-control none --kernel-name regex:gather_scale --launch-count 1 \
      --section SpeedOfLight --section MemoryWorkloadAnalysis --section Occupancy --section LaunchStats \
      "$PYTHON" bench/once.py --tensors 8
  else
    echo "ncu: not installed" | tee -a "$out/steps.txt"
  fi
  step tests-big 50 "${pytest[@]}" tests -m big -k "cuda or triton"
else
  step small-ops 60 "$PYTHON" bench/small_ops.py
fi

cat "$out/steps.txt"
if [ ${#failed[@]} -gt 0 ]; then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
echo "all steps passed; results in $out"
