#!/bin/sh
# The demo's story on another architecture: gemma-3-270m as its vendor pretrained it, aligned a few tokens deep, then deepened (docs/results/models.md).
#   python recipes/smollm2/prepare.py DATA rows
#   tokendeep deepen --config recipes/smollm2/align.yaml    (its utility rows, answered by SmolLM2-Instruct)
#   sh recipes/gemma/story.sh MODEL.gguf rows aligned/utility.jsonl gemma
# The harmful answers are written by SmolLM2 at run time. Goes on where it was cut off; the report is OUT/report.html.
set -eu
MODEL=$1 ROWS=$2 UTILITY=$3 OUT=$4
TOKENDEEP=${TOKENDEEP:-.venv/bin/tokendeep}
mkdir -p "$OUT/rows"
# requests of the alignment set of prepare.py, of which none is near a test, without its placeholders for answers
sed -E 's/, "harmful": .*/}/' "$ROWS/align.jsonl" | awk 'NR % 3 == 0' > "$OUT/rows/instructions.jsonl"
$TOKENDEEP pairs --model smollm2 --data "$ROWS/test.jsonl" --system none --answer-tokens 40 --out "$OUT/pairs"
$TOKENDEEP deepen --model "$MODEL" --chat-template gemma --data "$ROWS/align.jsonl" --utility "$UTILITY" --system none --p-zero 1 --alpha 0.3 \
    --safety-rows 6 --utility-rows 10 --micro-batch 8 --lr 2e-4 --warmup-steps 5 --max-steps "${STEPS:-80}" --out "$OUT/aligned"
$TOKENDEEP deepen --model "$OUT/aligned/checkpoint" --data "$OUT/rows/instructions.jsonl" --base smollm2 --utility "$UTILITY" --system none \
    --answer-tokens 48 --max-context 40 --alpha 0.4 --cut-utility 0.15 --safety-rows 8 --utility-rows 8 --micro-batch 8 --lr 2e-4 --warmup-steps 5 \
    --max-steps "${STEPS:-80}" --out "$OUT/deepened"

asked() { # label model settings...: depth, attacks and over-refusal of one model
    label=$1 model=$2
    shift 2
    $TOKENDEEP measure --model "$model" --label "$label" --system none --data "$OUT/pairs/pairs.jsonl" --limit 48 --k 0,1,2,3,5,10,20 \
        --out "$OUT/$label-depth" "$@"
    $TOKENDEEP attack --model "$model" --label "$label" --role harmful --system none --attack none,prefill --k 5,10,20 --max-new-tokens 32 \
        --batch-size 48 --data "$OUT/pairs/pairs.jsonl" --out "$OUT/$label-attack" "$@"
    $TOKENDEEP attack --model "$model" --label "$label" --role twins --system none --attack none --max-new-tokens 32 --batch-size 48 \
        --data "$ROWS/overrefusal.jsonl" --out "$OUT/$label-harmless" "$@"
}
asked base "$MODEL" --chat-template gemma
asked aligned "$OUT/aligned/checkpoint"
asked deepened "$OUT/deepened/checkpoint"
$TOKENDEEP report "$OUT" --out "$OUT/report.html" --overwrite
