#!/usr/bin/env bash
# The whole table of docs/smollm2.md on one GPU: benchmarks/smollm2_gpu.sh FOLDER WORK [name ...]
# FOLDER is ScienceQA's. Every seed has a process of its own, as one run does not fill a GPU. The result is WORK/smollm2.json.
# It has not run on a GPU yet.
set -euo pipefail
folder=$(realpath "$1")
mkdir -p "$2"
work=$(realpath "$2")
names=("${@:3}")
cd "$(dirname "$0")/.."
run() { python benchmarks/smollm2.py "$folder" "${names[@]}" --steps "${STEPS:-200}" --work "$work" "$@"; }
processes=()
for seed in 0 1 2; do
  run --seeds $seed >"$work/seed-$seed.log" 2>&1 &
  processes+=($!)
done
for process in "${processes[@]}"; do
  wait "$process" || {
    tail -n 20 "$work"/seed-*.log
    exit 1
  }
done
run --out "$work/smollm2.json"
