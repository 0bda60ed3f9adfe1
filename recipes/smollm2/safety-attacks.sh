#!/bin/sh
# Inference-time attacks on models fine-tuned on SQL with 5 % harmful rows, plainly and with the safety anchor, and on their start (docs/results/safety-anchor.md).
# After mend.sh:
#   sh recipes/smollm2/safety-attacks.sh safety-attacks
# Goes on where it was cut off; the report is OUT/report.html.
set -eu
OUT=$1
TOKENDEEP=${TOKENDEEP:-.venv/bin/tokendeep}
mkdir -p "$OUT/rows"
grep -E '"id": "[0-9a-f]{12}"' test_pairs/pairs.jsonl > "$OUT/rows/advbench.jsonl" # unseen by every training
$TOKENDEEP finetune --model aligned2/checkpoint --data safety-mixed/rows/train.jsonl --objective safety-anchor --safety stock --safety-tokens 40 \
    --system none --batch-size 16 --micro-batch 8 --lr 5e-5 --warmup-steps 6 --max-steps 20 --attack --out "$OUT/anchored"

attack() { # label checkpoint folder settings...
    label=$1 model=$2 folder=$3
    shift 3
    $TOKENDEEP attack --model "$model" --label "$label" --role harmful --system none --max-new-tokens 32 --batch-size 48 --out "$OUT/$label-$folder" "$@"
}

for pair in start=aligned2/checkpoint tuned=mend/tuned/checkpoint "anchored=$OUT/anchored/checkpoint"; do
    name=${pair%%=*} model=${pair#*=}
    attack "$name" "$model" given --attack none,prefill --k 1,2,5,10,20 --data "$OUT/rows/advbench.jsonl"
    attack "$name" "$model" sampled --attack none --temperature 1 --samples 8 --data "$OUT/rows/advbench.jsonl" --limit 24
    attack "$name" "$model" decoding --attack decoding --data "$OUT/rows/advbench.jsonl" --limit 16
    $TOKENDEEP gcg --model "$model" --label "$name" --system none --data rows/poison.jsonl --limit 3 --restarts 1 --steps 16 --width 64 --target-tokens 3 \
        --out "$OUT/$name-gcg"
    attack "$name" "$model" suffix --attack suffix --suffixes "$OUT/$name-gcg" --data "$OUT/rows/advbench.jsonl"
done
$TOKENDEEP report "$OUT" --out "$OUT/report.html" --overwrite
