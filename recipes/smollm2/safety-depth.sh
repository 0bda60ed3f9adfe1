#!/bin/sh
# How deep a deepened model's safety goes after SQL with 5 % harmful rows, plainly and with the safety anchor (docs/results/safety-anchor.md).
# After safety-deepened-mixed.yaml:
#   sh recipes/smollm2/safety-depth.sh safety-depth
# Goes on where it was cut off; the report is OUT/report.html.
set -eu
OUT=$1
TOKENDEEP=${TOKENDEEP:-.venv/bin/tokendeep}

tune() { # name settings...
    name=$1
    shift
    $TOKENDEEP finetune --model deepened/checkpoint --data safety-deep-mixed/rows/train.jsonl --system none --batch-size 16 --micro-batch 8 --lr 5e-5 \
        --warmup-steps 6 --max-steps 20 --attack --out "$OUT/$name" "$@"
}

tune plain --objective sft
tune anchored --objective safety-anchor --safety safety_pairs/pairs.jsonl --harmless stock --safety-tokens 40 --safety-context 40
for pair in start=deepened/checkpoint "plain=$OUT/plain/checkpoint" "anchored=$OUT/anchored/checkpoint"; do
    name=${pair%%=*} model=${pair#*=}
    $TOKENDEEP measure --model "$model" --label "$name" --data test_pairs/pairs.jsonl --system none --k 0,1,2,5,10,20 --out "$OUT/$name-profile"
    $TOKENDEEP attack --model "$model" --label "$name" --role harmful --attack none,prefill --k 1,2,5,10,20 --data test_pairs/pairs.jsonl --system none \
        --max-new-tokens 32 --batch-size 96 --out "$OUT/$name-attack"
done
$TOKENDEEP report "$OUT" --out "$OUT/report.html" --overwrite
