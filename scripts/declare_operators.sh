#!/bin/sh
# Let the torchvision of a virtual environment be imported beside a torch for which its C++ library is not built: PyPI's
# is for CUDA, and does not load beside a CPU build of torch. Processors and vision towers need the Python part alone. That
# part registers forms of two operators which the library defines. Here they are declared instead; a call of them fails.
#
# scripts/declare_operators.sh VENV
where="from importlib.util import find_spec; print(find_spec('torchvision').submodule_search_locations[0])"
file="$("$1/bin/python" -c "$where")/extension.py"
grep -q "torch.library.define" "$file" || cat >>"$file" <<'PYTHON'

if not _has_ops():
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PYTHON
