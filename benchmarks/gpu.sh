#!/usr/bin/env bash
# Measures the soft operators on a GPU in about ten minutes: benchmarks/gpu.sh OUT [PEERS]
# Writes ranking.{csv,md,png} into OUT. PEERS is a folder with other libraries, see benchmarks/ranking_libraries.py.
# Needs PyTorch with CUDA and matplotlib; PYTHON names the interpreter (default: .venv/bin/python, else python3).
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:?usage: benchmarks/gpu.sh OUT [PEERS]}
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3
export PYTHONPATH="common${PYTHONPATH:+:$PYTHONPATH}"

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "benchmarks/gpu.sh: PyTorch finds no CUDA device" >&2
    exit 1
}
status=0
timeout 600 "$python" -m benchmarks.ranking --out "$out" --runs 10 ${2:+--peers "$2"} || status=$?
if [ "$status" -eq 124 ]; then
    echo "benchmarks/gpu.sh: stopped after 10 minutes; run it again with a smaller --most" >&2
fi
exit "$status"
