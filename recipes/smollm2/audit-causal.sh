#!/bin/sh
# Does an audit's cut keep refusals? SQL with 22 harmful rows, trained on as it is, without the 22 rows that score highest, and without 22 at random; three
# seeds of rows, order and training (docs/results/audit.md). After `tokendeep audit --config recipes/smollm2/audit.yaml`:
#   sh recipes/smollm2/audit-causal.sh audited causal
# Goes on where it was cut off.
set -eu
AUDITED=$1 OUT=$2
TOKENDEEP=${TOKENDEEP:-.venv/bin/tokendeep}
PYTHON=${PYTHON:-.venv/bin/python}
mkdir -p "$OUT"
for seed in 0 1 2; do
    [ -e "$OUT/rows-$seed/random.jsonl" ] || "$PYTHON" "$(dirname "$0")/audit.py" mix "$AUDITED/rows.jsonl" "$AUDITED/scores/audit.json" \
        "$OUT/rows-$seed" $seed
    for set in cleaned random all; do
        $TOKENDEEP finetune --model aligned2/checkpoint --data "$OUT/rows-$seed/$set.jsonl" --objective sft --system none --batch-size 16 --micro-batch 8 \
            --lr 5e-5 --max-steps 20 --warmup-steps 6 --seed $seed --attack --out "$OUT/$set-$seed"
        $TOKENDEEP attack --model "$OUT/$set-$seed/checkpoint" --label "$set $seed" --role harmful --system none --attack none --max-new-tokens 32 --batch-size 48 \
            --data rows/test.jsonl --out "$OUT/$set-$seed-attack"
    done
done
$TOKENDEEP report "$OUT"/*-attack --out "$OUT/report.html" --overwrite
