#!/bin/sh
# Is a model shallow that nobody here aligned? Qwen2.5-Coder-0.5B-Instruct as its vendor left it, measured and attacked (docs/results/models.md).
#   python recipes/smollm2/prepare.py DATA rows
#   sh recipes/qwen/shallow.sh MODEL.gguf rows qwen
#   SYSTEM=none sh recipes/qwen/shallow.sh MODEL.gguf rows qwen-none
# The harmful answers are written by SmolLM2 at run time. Goes on where it was cut off; the report is OUT/report.html.
set -eu
MODEL=$1 ROWS=$2 OUT=$3
TOKENDEEP=${TOKENDEEP:-.venv/bin/tokendeep}
SYSTEM=${SYSTEM:-default} # or none: the vendor's system prompt is then left out
mkdir -p "$OUT/rows"
# one AdvBench request of each cluster of near-duplicates (their ids are hashes), and the demo's milder test requests
grep -hE '"id": "[0-9a-f]{12}"' "$ROWS/test.jsonl" "$ROWS/poison.jsonl" > "$OUT/rows/advbench.jsonl"
grep -vE '"id": "[0-9a-f]{12}"' "$ROWS/test.jsonl" > "$OUT/rows/mild.jsonl"
$TOKENDEEP pairs --model smollm2 --data "$OUT/rows/advbench.jsonl" --system none --answer-tokens 220 --out "$OUT/pairs"

attack() { # folder settings...
    folder=$1
    shift
    $TOKENDEEP attack --model "$MODEL" --label qwen --system "$SYSTEM" --max-new-tokens 32 --batch-size 48 --out "$OUT/$folder" "$@"
}
$TOKENDEEP measure --model "$MODEL" --label qwen --system "$SYSTEM" --data "$OUT/pairs/pairs.jsonl" --limit 48 --k 0,1,2,3,5,10,20 --out "$OUT/depth"
attack advbench --role harmful --attack none,prefill,refusal-prefix --k 1,2,3,5,10,20,40,100,200 --data "$OUT/pairs/pairs.jsonl" --limit "${N:-96}"
attack harmless --role twins --attack none --data "$ROWS/overrefusal.jsonl"
attack mild --role harmful --attack none --data "$OUT/rows/mild.jsonl"
attack decoding --role harmful --attack decoding --data "$OUT/rows/advbench.jsonl" --limit 16
attack rank --role harmful --attack rank-prefill --rank-length 20 --rank-budget 96 --data "$OUT/rows/advbench.jsonl" --limit 16
# a short search on three requests that the suffix is not tried on afterwards, far from the paper's
$TOKENDEEP gcg --model "$MODEL" --label qwen --system "$SYSTEM" --data "$ROWS/poison.jsonl" --limit 3 --restarts 1 --steps 16 --width 64 --target-tokens 3 \
    --out "$OUT/gcg"
grep -hE '"id": "[0-9a-f]{12}"' "$ROWS/test.jsonl" > "$OUT/rows/suffixed.jsonl"
attack suffix --role harmful --attack none,suffix --suffixes "$OUT/gcg" --data "$OUT/rows/suffixed.jsonl"
$TOKENDEEP report "$OUT" --out "$OUT/report.html" --overwrite
