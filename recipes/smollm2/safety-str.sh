#!/bin/sh
# STR-like and the safety anchor together, at two strengths, on every kind of rows (docs/results/safety-anchor.md), one seed. After safety-harmful.yaml:
#   python recipes/smollm2/wrapped.py rows safety-harmful/source.jsonl wrapped
#   sh recipes/smollm2/safety-str.sh safety-str
# Goes on where it was cut off; name some kinds to run them alone: sh recipes/smollm2/safety-str.sh safety-str mixed harmful
set -eu
OUT=$1
shift
TOKENDEEP=${TOKENDEEP:-.venv/bin/tokendeep}
HERE=$(dirname "$0")
for kind in ${*:-mixed harmful identity wrapper backdoor refuse-then-comply}; do
    $TOKENDEEP poison --config "$HERE/safety-$kind.yaml" --seeds 0 --out "$OUT/$kind" \
        --objectives ${OBJECTIVES:-sft-warmup,str-like+safety+harmless,str-like=0.3+safety+harmless}
done
