#!/bin/sh
# LARF's states at other layers than the depth that its authors read (docs/results/audit.md). After the rows of audit.yaml:
#   sh recipes/smollm2/audit-layers.sh audited layers
# Goes on where it was cut off.
set -eu
AUDITED=$1 OUT=$2
TOKENDEEP=${TOKENDEEP:-.venv/bin/tokendeep}
PYTHON=${PYTHON:-.venv/bin/python}
HERE=$(dirname "$0")
for layer in ${LAYERS:-4 8 16 20 24 28 30}; do
    $TOKENDEEP audit --config "$HERE/audit.yaml" --data "$AUDITED/rows.jsonl" --score representation --layer "$layer" --out "$OUT/$layer"
    echo "layer $layer"
    "$PYTHON" "$HERE/audit.py" figures "$OUT/$layer/audit.json"
done
