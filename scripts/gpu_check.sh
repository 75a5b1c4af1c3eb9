#!/bin/bash
# What only a GPU can show, on one of them: pace, utilisation and memory of a training step, exact search, the table
# methods_small, and a run that is killed and goes on. Numbers are printed as they come, and written to OUT.
#   scripts/gpu_check.sh OUT [STEP...]      steps: doctor step search table resume (default: all of them)
# DATA is a shard folder of photographs (data/grocery), JOBS the runs that share the GPU (2: twelve at a time on an H100
# took 0.15 to 0.5 s a step, each waiting for the others), ARGS goes to `ablate`. How long all
# of it takes was not measured.
set -uo pipefail

if [[ $# -eq 0 ]]; then
  echo "usage: DATA=data/grocery scripts/gpu_check.sh OUT [doctor step search table resume]" >&2
  exit 2
fi
cd "$(dirname "$0")/.."
mkdir -p "$1/logs"
OUT=$(cd "$1" && pwd)
shift
DATA=${DATA:-data/grocery}
CLI="${PYTHON:-.venv/bin/python} -m experiments"
export WANDB_MODE=${WANDB_MODE:-offline} PYTHONUNBUFFERED=1
failed=()

doctor() { $CLI doctor; }

step() { $CLI bench step --out "$OUT/step.json"; }

search() { $CLI bench search --out "$OUT/search.json"; }

table() {
  OMP_NUM_THREADS=1 $CLI ablate methods_small --data "$DATA" --jobs "${JOBS:-2}" --runs "$OUT/runs" ${ARGS:-}
  $CLI table --table methods_small --data "$DATA" --runs "$OUT/runs" --out "$OUT/methods_small.md"
}

# The same 60 steps without a break, again, and killed after step 30. The second run tells what the GPU alone changes.
resume() {
  local words="fit --exp capture --scale small --data $DATA --seed 7 --trainer.max_steps=60 --data.steps_per_epoch=20"
  words="$words --trainer.log_every_n_steps=1 --data.num_workers=2 --evaluation.same=false"
  export OMP_NUM_THREADS=1
  for name in whole again; do
    $CLI $words --runs "$OUT/$name" > "$OUT/logs/$name.txt" 2>&1 &
  done
  setsid $CLI $words --runs "$OUT/killed" > "$OUT/logs/killed.txt" 2>&1 &
  local run=$!
  for _ in $(seq 1200); do
    if grep -qs '"step": 30,' "$OUT"/killed/*/history.jsonl; then break; fi
    sleep 0.1
  done
  kill -KILL -- "-$run" && echo "killed after step 30"
  wait
  $CLI $words --runs "$OUT/killed" > "$OUT/logs/killed_goes_on.txt" 2>&1
  grep -h "going on from" "$OUT/logs/killed_goes_on.txt"
  ${PYTHON:-.venv/bin/python} - "$OUT" <<'PYTHON'
import json, pathlib, sys

def losses(name):
    (file,) = pathlib.Path(sys.argv[1], name).glob("*/history.jsonl")
    rows = map(json.loads, file.read_text().splitlines())
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}

whole = losses("whole")
for name in ("again", "killed"):
    other = losses(name)
    far = {step: abs(other[step] - whole[step]) for step in whole if step in other}
    print(f"{name}: {len(far)} of {len(whole)} steps logged, largest difference of a loss {max(far.values()):.3g}")
PYTHON
}

for name in ${*:-doctor step search table resume}; do
  started=$SECONDS
  "$name" 2>&1 | tee "$OUT/logs/$name.txt" || failed+=("$name")
  echo "== $name took $((SECONDS - started)) s"
done
if [[ ${#failed[@]} -gt 0 ]]; then
  echo "failed: ${failed[*]} (logs in $OUT/logs)" >&2
  exit 1
fi
