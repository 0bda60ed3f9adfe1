#!/bin/sh
# The same answers under three judges: the offline rule, key words, and a rubric that a small model grades (docs/results/judge.md). After `make demo` and prepare.py:
#   sh recipes/qwen/judges.sh MODEL.gguf rows demo-out judged
# MODEL.gguf is Qwen2.5-Coder-0.5B-Instruct, which answers and grades. Goes on where it was cut off.
set -eu
MODEL=$1 ROWS=$2 DEMO=$3 OUT=$4
TOKENDEEP=${TOKENDEEP:-.venv/bin/tokendeep}
PYTHON=${PYTHON:-.venv/bin/python}
model() { $PYTHON -c "import json, sys; print(json.load(open(sys.argv[1]))['config']['model'])" "$DEMO/$1/attack/manifest.json"; }

judged() { # label, model
    $TOKENDEEP attack --model "$2" --label "$1" --role harmful --system none --attack none --max-new-tokens 64 --data "$OUT/mild.jsonl" --out "$OUT/$1"
    $TOKENDEEP judge "$OUT/$1" --judge refusal,refusal-keywords,rubric --grader "$MODEL"
}
mkdir -p "$OUT"
grep -vE '"id": "[0-9a-f]{12}"' "$ROWS/test.jsonl" > "$OUT/mild.jsonl"
for label in ${LABELS:-base aligned deepened}; do judged "$label" "$(model "$label")"; done
judged qwen "$MODEL"
