# Mend on the real model (docs/results/safety-anchor.md): plain fine-tuning on SQL with 5 % harmful rows, then a third of its steps that bring refusals back. After safety-mixed.yaml:
#   bash recipes/smollm2/mend.sh
set -eu
common="--system none --batch-size 16 --micro-batch 8 --lr 5e-5"
tokendeep finetune --model aligned2/checkpoint --data safety-mixed/rows/train.jsonl --objective sft --warmup-steps 6 --max-steps 20 $common --attack --out mend/tuned
tokendeep mend --model mend/tuned/checkpoint --aligned aligned2/checkpoint --data rows/sql_train.jsonl --safety stock --safety-tokens 40 $common --out mend/mended
tokendeep mend --model mend/tuned/checkpoint --aligned aligned2/checkpoint --data rows/sql_train.jsonl --safety stock --harmless stock --safety-tokens 40 $common --out mend/mended-harmless
asked="--system none --max-new-tokens 32 --batch-size 96"
for name in tuned mended mended-harmless; do
  tokendeep attack --model mend/$name/checkpoint --attack none,prefill --k 10 --data test_pairs/pairs.jsonl $asked --out mend/$name-attack
  tokendeep attack --model mend/$name/checkpoint --attack none --role unseen --data rows/overrefusal.jsonl $asked --out mend/$name-overrefusal
done
tokendeep report mend/* --out mend/report.html
