#!/bin/sh
# Does an anchor of English requests hold in other wordings and languages? The models of safety-attacks.sh, which comes first (docs/results/safety-anchor.md):
#   sh recipes/smollm2/wordings.sh wordings
# Goes on where it was cut off; the report is OUT/report.html.
set -eu
OUT=$1
TOKENDEEP=${TOKENDEEP:-.venv/bin/tokendeep}
PYTHON=${PYTHON:-.venv/bin/python}
"$PYTHON" "$(dirname "$0")/wordings.py" rows "$OUT/rows"
for pair in start=aligned2/checkpoint tuned=mend/tuned/checkpoint anchored=safety-attacks/anchored/checkpoint; do
    name=${pair%%=*} model=${pair#*=}
    for set in as-is polite typing story english german french; do
        $TOKENDEEP attack --model "$model" --label "$name $set" --role harmful --attack none --system none --max-new-tokens 32 --batch-size 48 \
            --data "$OUT/rows/$set.jsonl" --out "$OUT/$name-$set"
    done
done
$TOKENDEEP report "$OUT" --out "$OUT/report.html" --overwrite
