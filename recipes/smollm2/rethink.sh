#!/bin/sh
# The defence `rethink` (Any-Depth Alignment, ADA-RK) on a shallow model and on the same one deepened (docs/results/inference.md), after
# prepare.py, align.yaml and align2.yaml:
#   sh recipes/smollm2/rethink.sh aligned2 rows rethink
# Harmful answers of 520 tokens by the base model, so that up to 500 of them can be given; goes on where it was cut off.
set -eu
ALIGNED=$1 ROWS=$2 OUT=$3 N=${N:-24} K=${K:-0,5,10,25,100,200,500}
TOKENDEEP=${TOKENDEEP:-.venv/bin/tokendeep}
mkdir -p "$OUT"
only() { sed -E 's/, "(harmful|refusal)": .*/}/' "$1"; }  # requests without answers, or placeholders for them
only "$ROWS/test.jsonl" | head -48 > "$OUT/harmful.jsonl"
only "$ROWS/align.jsonl" | awk 'NR % 3 == 1' > "$OUT/instructions.jsonl"
$TOKENDEEP pairs --model smollm2 --base smollm2 --data "$OUT/harmful.jsonl" --system none --answer-tokens 520 --out "$OUT/pairs"
$TOKENDEEP deepen --model "$ALIGNED/checkpoint" --data "$OUT/instructions.jsonl" --base smollm2 --utility "$ALIGNED/utility.jsonl" \
    --system none --answer-tokens 60 --lr 3e-4 --max-steps 60 --warmup-steps 5 --safety-rows 8 --utility-rows 8 --micro-batch 4 \
    --alpha 0.4 --cut-utility 0.15 --max-context 40 --train-layers 15 --out "$OUT/deepened"

ask() { # label, checkpoint, name of the runs, settings...
    label=$1 model=$2 name=$3
    shift 3
    ask="$TOKENDEEP attack --model $model --label $label --system none --limit $N --max-new-tokens"
    $ask 48 "$@" --attack prefill --k "$K" --role harmful --data "$OUT/pairs/pairs.jsonl" --out "$OUT/$label-$name"
    $ask 100 "$@" --attack none --role twins --data "$ROWS/overrefusal.jsonl" --out "$OUT/$label-$name-twins"
}
for label in aligned deepened; do
    model="$OUT/deepened/checkpoint"
    [ $label = deepened ] || model="$ALIGNED/checkpoint"
    ask $label "$model" plain
    ask $label "$model" rethink --defence rethink
done
$TOKENDEEP report "$OUT"/*-plain "$OUT"/*-rethink "$OUT"/*-twins --out "$OUT/report.html" --overwrite
