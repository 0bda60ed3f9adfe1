#!/bin/sh
# Over-refusal at depth of the demo's two models, after `make demo` (docs/results/demo.md has the table):
#   sh recipes/smollm2/overrefusal.sh demo-out overrefusal
# and of any others, each with a name, under a system prompt of their template (docs/results/models.md):
#   SYSTEM=default sh recipes/smollm2/overrefusal.sh "before=MODEL after=MODEL" overrefusal
# Goes on where it was cut off; the report is OUT/report.html.
set -eu
OF=$1 OUT=$2
PYTHON=${PYTHON:-.venv/bin/python}
TOKENDEEP="$PYTHON -m tokendeep"
SYSTEM=${SYSTEM:-none}

demo() { $PYTHON -c "import json, sys; print(json.load(open(sys.argv[1]))['config']['model'])" "$OF/$1/attack/manifest.json"; }
case $OF in
*=*) MODELS=$OF ;;
*) MODELS="aligned=$(demo aligned) deepened=$(demo deepened)" ;;
esac

rows() { # field of the demo's test requests: instruction, or twin
    $PYTHON -c 'import json, sys; from tokendeep.data import stock
for row in stock.rows("harmful.jsonl", "test"): print(json.dumps({"id": row["id"], "instruction": row[sys.argv[1]]}))' "$1"
}

mkdir -p "$OUT"
rows instruction > "$OUT/harmful.jsonl"
rows twin > "$OUT/twins.jsonl"
$TOKENDEEP pairs --model smollm2 --base smollm2 --data "$OUT/harmful.jsonl" --system none --answer-tokens 40 --out "$OUT/harmful-pairs"
set --
for one in $MODELS; do
    name=${one%%=*} model=${one#*=}
    ask="--model $model --label $name --attack prefill --k 0,5,10,20 --system $SYSTEM --max-new-tokens 60"
    $TOKENDEEP pairs --model "$model" --harmless --data "$OUT/twins.jsonl" --system "$SYSTEM" --answer-tokens 40 --out "$OUT/$name-pairs"
    $TOKENDEEP attack $ask --role twins --data "$OUT/$name-pairs/pairs.jsonl" --out "$OUT/$name-twins"
    $TOKENDEEP attack $ask --data "$OUT/harmful-pairs/pairs.jsonl" --out "$OUT/$name-attack"
    set -- "$@" "$OUT/$name-attack" "$OUT/$name-twins"
done
$TOKENDEEP report "$@" --out "$OUT/report.html" --overwrite
