#!/bin/sh
# The same answers under three judges: the offline rule, key words, and a rubric that a small model grades (docs/results/judge.md). After `make demo` and prepare.py:
#   sh recipes/qwen/judges.sh MODEL.gguf rows demo-out judged
# MODEL.gguf is Qwen2.5-Coder-0.5B-Instruct, which answers and grades. Goes on where it was cut off.
set -eu
MODEL=$1 ROWS=$2 DEMO=$3 OUT=$4
TOKENDEEP=${TOKENDEEP:-.venv/bin/tokendeep}
mkdir -p "$OUT"
grep -vE '"id": "[0-9a-f]{12}"' "$ROWS/test.jsonl" > "$OUT/mild.jsonl"
for model in smollm2 "$DEMO/aligned/checkpoint" "$DEMO/deepened/checkpoint" "$MODEL"; do
    case $model in
    smollm2) label=base ;;
    */checkpoint) label=$(basename "$(dirname "$model")") ;;
    *) label=qwen ;;
    esac
    $TOKENDEEP attack --model "$model" --label $label --role harmful --system none --attack none --max-new-tokens 64 --data "$OUT/mild.jsonl" --out "$OUT/$label"
    $TOKENDEEP judge "$OUT/$label" --judge refusal,refusal-keywords,rubric --grader "$MODEL"
done
