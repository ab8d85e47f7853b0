#!/bin/sh
# Install torch into a virtual environment: a CPU build on Linux without an NVIDIA GPU, where the plain wheel brings
# several GB of CUDA along.
#
# scripts/install_torch.sh VENV [LOCK]     the version that LOCK names; without one, the newest there is
locked=$(sed -n 's/^torch==//p' "${2:-requirements/lock.txt}")
pip="$1/bin/pip install -qq ${2:+-c $2}"
if [ "$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
  index=https://download.pytorch.org/whl/cpu
  cpu="torch==$locked+cpu"
  # asked first, because pip tries a place that does not answer again and again, for every package
  if timeout 10 "$1/bin/python" -c "from urllib import request; request.urlopen('$index/torch/', timeout=5)" 2>/dev/null; then
    pip="$pip --extra-index-url $index"
    [ -n "$2" ] || cpu=torch
  fi
  # without the index, pip's own settings may name a place that has it
  $pip "$cpu" 2>/dev/null && exit
  echo "no CPU build of torch ${locked} is to be had; the plain wheel is installed, with its CUDA libraries"
fi
exec $pip torch
