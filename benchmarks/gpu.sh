#!/usr/bin/env bash
# One session on a GPU: installs the library where it is not, prints versions, and measures all rows of gpu.py.
#   bash benchmarks/gpu.sh [folder for the results]
# Without network, leave the installation out: PYTHON=path/to/python bash benchmarks/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-${OUT:-benchmarks/history}}"
python="${PYTHON:-python3}"
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if ! "$python" -c "import torch, transformers, trl, peft, bitsandbytes, datasets" 2>/dev/null; then
    # The torch that is there stays, since it fits the driver.
    grep -v '^torch==' constraints.txt > "$out/constraints.txt"
    "$python" -m pip install --quiet . -c "$out/constraints.txt" 2>&1 | tail -3
fi
"$python" -c "
import platform, torch, transformers, trl, peft, bitsandbytes
print('python', platform.python_version(), 'torch', torch.__version__, 'cuda', torch.version.cuda)
print('transformers', transformers.__version__, 'trl', trl.__version__, 'peft', peft.__version__)
print('bitsandbytes', bitsandbytes.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')"
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv || true
"$python" benchmarks/gpu.py --save --seconds "${SECONDS_LEFT:-350}" 2> "$out/gpu.err" | tee "$out/gpu.txt" || tail -20 "$out/gpu.err"
cp benchmarks/history/*.json "$out/" 2> /dev/null || true
