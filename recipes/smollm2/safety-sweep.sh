#!/bin/sh
# The safety anchor away from the one setting of safety-strength.yaml, one seed (docs/results/safety-anchor.md). After safety-harmful.yaml:
#   sh recipes/smollm2/safety-sweep.sh DATA sweep
# DATA holds gsm8k_train_1000.jsonl and gsm8k_test_300.jsonl. Each line is a table of its own and goes on where it was cut off;
# name some to run them alone: sh recipes/smollm2/safety-sweep.sh DATA sweep lora rates
set -eu
DATA=$1 OUT=$2
shift 2
TOKENDEEP=${TOKENDEEP:-.venv/bin/tokendeep}
HERE=$(dirname "$0")
EACH=sft-warmup,safety-anchor,safety-anchor+harmless
mkdir -p "$OUT/rows"

cell() { # name settings...
    name=$1
    shift
    $TOKENDEEP poison --config "$HERE/safety-strength.yaml" --harmless stock --out "$OUT/$name" "$@"
}

for group in "${@:-all}"; do
    case $group in
    rows | all) # fewer requests in the anchor, drawn evenly from the stock's categories
        for n in 8 16 32 64 128; do
            awk -v n=$n 'int(NR * n / 160) > int((NR - 1) * n / 160)' rows/stock.jsonl > "$OUT/rows/stock-$n.jsonl"
            cell rows-$n --safety "$OUT/rows/stock-$n.jsonl" --objectives safety-anchor
        done ;;
    esac
    case $group in
    shares | all) # of harmful rows; at .5 of fewer rows, for there are 100 harmful ones
        for share in 0 0.1 0.2; do cell share-$share --ratio $share --objectives $EACH; done
        cell share-0.5 --ratio 0.5 --count 200 --objectives $EACH ;;
    esac
    case $group in
    lora | all) # adapters of rank 16
        cell lora --objectives sft-warmup+lora=16,safety-anchor+lora=16,safety-anchor+harmless+lora=16 --lr 1e-3 ;;
    esac
    case $group in
    rates | all) # peak learning rates
        for rate in 2e-5 1e-4; do cell rate-$rate --lr $rate --objectives $EACH; done ;;
    esac
    case $group in
    gsm8k | all) # another task
        cell gsm8k --data "$DATA/gsm8k_train_1000.jsonl" --utility-data "$DATA/gsm8k_test_300.jsonl" --utility-metric rouge1 \
            --utility-tokens 96 --objectives $EACH ;;
    esac
    case $group in
    steps | all) # twice and four times as many
        for steps in 40 80; do cell steps-$steps --max-steps $steps --objectives $EACH; done ;;
    esac
done
