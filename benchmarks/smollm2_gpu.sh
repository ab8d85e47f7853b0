#!/usr/bin/env bash
# The whole table of docs/smollm2.md on one GPU: benchmarks/smollm2_gpu.sh FOLDER WORK [name ...]
# FOLDER is ScienceQA's. As one run does not fill a GPU, JOBS run side by side. The result is WORK/smollm2.json.
# It has not run on a GPU yet.
set -euo pipefail
FOLDER=$(realpath "$1")
mkdir -p "$2"
WORK=$(realpath "$2")
names=("${@:3}")
cd "$(dirname "$0")/.."
if [ ${#names[@]} = 0 ]; then
  mapfile -t names < <(PYTHONPATH=benchmarks python -c "import smollm2; print(*smollm2.RUNS, sep='\n')")
fi
run() { python benchmarks/smollm2.py "$FOLDER" "${@:2}" --seeds $1 --steps "${STEPS:-200}" --work "$WORK"; }
logged() { run "$@" >"$WORK/$2, $1.log" 2>&1 || { tail -n 20 "$WORK/$2, $1.log"; exit 1; }; }
export -f run logged
export FOLDER WORK OMP_NUM_THREADS=1
for seed in 0 1 2; do printf "$seed\0%s\0" "${names[@]}"; done | xargs -0 -n 2 -P "${JOBS:-12}" bash -c 'logged "$@"' bash
run "0 1 2" "${names[@]}" --out "$WORK/smollm2.json"
