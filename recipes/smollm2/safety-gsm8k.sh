#!/bin/sh
# What is learnt of GSM8K with 5 % harmful rows, by the loss on 100 held-out answers, plainly and with the safety anchor (docs/results/safety-anchor.md).
# After `sh recipes/smollm2/safety-sweep.sh DATA sweep gsm8k`:
#   sh recipes/smollm2/safety-gsm8k.sh DATA safety-gsm8k
# Goes on where it was cut off; the losses are the lines eval_nll of OUT/*/training.jsonl (`before`: one step at a rate that moves nothing).
set -eu
DATA=$1 OUT=$2
TOKENDEEP=${TOKENDEEP:-.venv/bin/tokendeep}
mkdir -p "$OUT"
head -n 100 "$DATA/gsm8k_test_300.jsonl" > "$OUT/held-out.jsonl"

tune() { # name steps rate settings...
    name=$1 steps=$2 rate=$3
    shift 3
    $TOKENDEEP finetune --model aligned2/checkpoint --data sweep/gsm8k/rows/train.jsonl --eval-data "$OUT/held-out.jsonl" --system none --batch-size 16 \
        --micro-batch 8 --lr $rate --warmup-steps 6 --max-steps $steps --attack --out "$OUT/$name" "$@"
}

tune before 1 1e-12 --objective sft
tune plain 20 5e-5 --objective sft
tune anchored 20 5e-5 --objective safety-anchor --safety stock --safety-tokens 40
tune anchored-harmless 20 5e-5 --objective safety-anchor --safety stock --harmless stock --safety-tokens 40
