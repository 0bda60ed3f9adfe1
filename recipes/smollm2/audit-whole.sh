#!/bin/sh
# The figures of audit.yaml on rows whose answers are written to their end, so that no score can tell a cut answer from a harmful one (docs/results/audit.md).
# DATA holds the two public files that audit.py names:
#   sh recipes/smollm2/audit-whole.sh DATA whole
# Goes on where it was cut off.
set -eu
DATA=$1 OUT=$2
TOKENDEEP=${TOKENDEEP:-.venv/bin/tokendeep}
PYTHON=${PYTHON:-.venv/bin/python}
HERE=$(dirname "$0")
pairs() { $TOKENDEEP pairs --model smollm2 --system none --answer-tokens 400 --dtype bfloat16 "$@"; }
pairs --data rows/poison.jsonl --out "$OUT/harmful"
pairs --harmless --data rows/ordinary.jsonl --limit "${ORDINARY:-500}" --tries 1 --out "$OUT/ordinary"
"$PYTHON" "$HERE/audit.py" rows "$DATA" "$OUT/ordinary/pairs.jsonl" "$OUT/harmful/pairs.jsonl" "$OUT" whole
for layer in ${LAYERS:-13 26}; do
    scores=representation
    [ "$layer" = 13 ] && scores=refusal,margin,gradient,representation,likelihood
    $TOKENDEEP audit --config "$HERE/audit.yaml" --data "$OUT/rows.jsonl" --score $scores --layer "$layer" --out "$OUT/layer-$layer"
    echo "layer $layer"
    "$PYTHON" "$HERE/audit.py" figures "$OUT/layer-$layer/audit.json"
done
