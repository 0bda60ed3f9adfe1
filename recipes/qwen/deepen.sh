#!/bin/sh
# Qwen2.5-Coder-0.5B-Instruct deepened with an adapter, and attacked again (docs/results/models.md). After shallow.sh:
#   sh recipes/qwen/deepen.sh MODEL.gguf rows qwen
# What it learns to answer beside: by default a fourth of the ordinary rows of prepare.py; with LIKE=253 all of them that merely sound harmful too (half of
# XSTest, and twins of the demo's stock); with HARMLESS=stock the twins of tokendeep's stock and no more of XSTest.
set -eu
MODEL=$1 ROWS=$2 OUT=$3
TOKENDEEP=${TOKENDEEP:-.venv/bin/tokendeep}
SYSTEM=${SYSTEM:-default}
# requests of the alignment set of prepare.py, of which none is near a test, without its placeholders for answers
sed -E 's/, "harmful": .*/}/' "$ROWS/align.jsonl" | awk 'NR % 3 == 0' > "$OUT/rows/instructions.jsonl"
awk -v like="${LIKE:-0}" 'NR <= like || NR % 4 == 0' "$ROWS/utility.jsonl" > "$OUT/rows/utility.jsonl"
$TOKENDEEP deepen --model "$MODEL" --data "$OUT/rows/instructions.jsonl" --base smollm2 --utility "$OUT/rows/utility.jsonl" --system "$SYSTEM" \
    --answer-tokens 100 --lora 16 --lr 3e-4 --max-steps "${STEPS:-60}" --warmup-steps 5 --safety-rows 6 --utility-rows 6 --micro-batch 12 \
    --alpha 0.3 --max-context 100 ${HARMLESS:+--harmless "$HARMLESS"} --out "$OUT/deepened"

attack() { # folder settings...
    folder=$1
    shift
    $TOKENDEEP attack --model "$OUT/deepened/checkpoint" --label "qwen deepened" --system "$SYSTEM" --max-new-tokens 32 --batch-size 48 \
        --out "$OUT/$folder" "$@"
}
$TOKENDEEP measure --model "$OUT/deepened/checkpoint" --label "qwen deepened" --system "$SYSTEM" --data "$OUT/pairs/pairs.jsonl" --limit 48 --k 0,1,2,3,5,10,20 \
    --out "$OUT/deepened-depth"
attack deepened-advbench --role harmful --attack none,prefill,refusal-prefix --k 1,2,3,5,10,20,40,100,200 --data "$OUT/pairs/pairs.jsonl" --limit "${N:-96}"
attack deepened-harmless --role twins --attack none --data "$ROWS/overrefusal.jsonl"
attack deepened-mild --role harmful --attack none --data "$OUT/rows/mild.jsonl"
$TOKENDEEP report "$OUT" --out "$OUT/report.html" --overwrite
