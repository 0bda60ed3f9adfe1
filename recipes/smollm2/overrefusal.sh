#!/bin/sh
# Over-refusal at depth of the demo's two models, after `make demo` (docs/results/demo.md has the table):
#   sh recipes/smollm2/overrefusal.sh demo-out overrefusal
# Goes on where it was cut off; the report is OUT/report.html.
set -eu
DEMO=$1 OUT=$2
PYTHON=${PYTHON:-.venv/bin/python}
TOKENDEEP="$PYTHON -m tokendeep"

model() { $PYTHON -c "import json, sys; print(json.load(open(sys.argv[1]))['config']['model'])" "$DEMO/$1/attack/manifest.json"; }

rows() { # field of the demo's test requests: instruction, or twin
    $PYTHON -c 'import json, sys; from tokendeep.data import stock
for row in stock.rows("harmful.jsonl", "test"): print(json.dumps({"id": row["id"], "instruction": row[sys.argv[1]]}))' "$1"
}

mkdir -p "$OUT"
rows instruction > "$OUT/harmful.jsonl"
rows twin > "$OUT/twins.jsonl"
$TOKENDEEP pairs --model smollm2 --base smollm2 --data "$OUT/harmful.jsonl" --system none --answer-tokens 40 --out "$OUT/harmful-pairs"
for name in aligned deepened; do
    ask="--model $(model $name) --label $name --attack prefill --k 0,5,10,20 --system none --max-new-tokens 60"
    $TOKENDEEP pairs --model "$(model $name)" --harmless --data "$OUT/twins.jsonl" --system none --answer-tokens 40 --out "$OUT/$name-pairs"
    $TOKENDEEP attack $ask --role twins --data "$OUT/$name-pairs/pairs.jsonl" --out "$OUT/$name-twins"
    $TOKENDEEP attack $ask --data "$OUT/harmful-pairs/pairs.jsonl" --out "$OUT/$name-attack"
done
$TOKENDEEP report "$OUT/aligned-attack" "$OUT/aligned-twins" "$OUT/deepened-attack" "$OUT/deepened-twins" --out "$OUT/report.html" --overwrite
