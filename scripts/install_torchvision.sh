#!/bin/sh
# Install torchvision and packages that need it into a virtual environment that has torch.
#
# scripts/install_torchvision.sh VENV WHAT...     WHAT is for pip install
venv=$1
shift
more=
# asked first, because pip tries a place that does not answer again and again, for every package
index=https://download.pytorch.org/whl/cpu
ask="from urllib import request; request.urlopen('$index/torchvision/', timeout=5)"
if ! command -v nvidia-smi >/dev/null && timeout 10 "$venv/bin/python" -c "$ask" 2>/dev/null; then
  more="--extra-index-url $index"
fi
# shellcheck disable=SC2086
"$venv/bin/pip" install -qq $more "$@" && "$(dirname "$0")/declare_operators.sh" "$venv"
