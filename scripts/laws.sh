#!/usr/bin/env bash
# Every control law on the same seeds and tokens, then one table: `bash scripts/laws.sh [folder] [steps] [seeds]`.
# The arms of a seed share initial weights, data order and tokens. Two controls play the chronovisor's own record of the
# seed: sham rotates it at random, replay plays the next seed's. In fp32, whatever the machine, so that tables compare.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-outputs/laws} steps=${2:-150} seeds=${3:-1,2,3,4,5}
common=(trainer.max_steps="$steps" trainer.eval_every_steps="$steps" trainer.precision=32-true)
laws=off,quantile,sign,centered_sign,proportional,smebu,bip,sinkhorn,documented,chronovisor

# One folder a run, named by law and seed, so that the controls find the record they play.
by_name='hydra.sweep.subdir=${chrono.law}_${seed}'
python train.py -m seed="$seeds" chrono=$laws "${common[@]}" hydra.sweep.dir="$folder/laws" "$by_name"
python train.py -m seed="$seeds" chrono=off router.load_balancing_weight=0.01 "${common[@]}" hydra.sweep.dir="$folder/aux"

IFS=, read -ra each <<<"$seeds"
for i in "${!each[@]}"; do
    seed=${each[$i]} next=${each[$(((i + 1) % ${#each[@]}))]}
    python train.py seed="$seed" chrono=sham chrono.trace="$folder/laws/chronovisor_$seed" "${common[@]}" \
        hydra.run.dir="$folder/sham/$seed"
    python train.py seed="$seed" chrono=replay chrono.trace="$folder/laws/chronovisor_$next" "${common[@]}" \
        hydra.run.dir="$folder/replay/$seed"
done
python -m chronomoe.compare runs="$folder" baseline=off axis=chrono,router.load_balancing_weight
