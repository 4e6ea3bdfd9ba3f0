#!/usr/bin/env bash
# A training in a container is stopped, killed, and ends as if it had not been. Build it first:
#     docker build -t nanoneox . && bash tests/torture/container.sh docker
# RUN_ARGS: more arguments for `docker run`.
set -euo pipefail
engine=${1:-docker}
name=nanoneox-torture-$$

run() {
  # shellcheck disable=SC2086
  "$engine" run ${RUN_ARGS:-} -v "$name-data:/nanoneox/data" -v "$name-out:/nanoneox/out" "$@"
}
train() {  # arguments of `run`, then steps
  local steps=${*: -1}
  run "${@:1:$#-1}" nanoneox python train.py config/python_cpu.py --out_dir=out/run --n_layer=2 \
    --n_head=2 --n_embd=64 --block_size=64 --batch_size=4 --max_minutes=0 --max_iters="$steps" \
    --eval_interval=50 --eval_iters=2 --log_interval=10 --dtype=float32 --init_from=auto --keep=1
}
last="import json; print(json.loads(open('out/run/metrics.jsonl').readlines()[-1])['step'])"
step() { run --rm nanoneox python -c "$last"; }
went_on() { [ "$("$engine" exec "$name" python -c "$last")" -gt "$killed" ]; }
wait_for() {  # seconds, then a command
  for _ in $(seq "$1"); do "${@:2}" >/dev/null 2>&1 && return; sleep 1; done
  echo "no success in $1 s: ${*:2}"; exit 1
}
tidy() {
  "$engine" rm -f "$name" >/dev/null 2>&1 || true
  "$engine" volume rm -f "$name-data" "$name-out" >/dev/null
}
trap tidy EXIT

[ "$(run --rm nanoneox id -u)" = 1000 ] || { echo "runs as root"; exit 1; }
run --rm nanoneox python prepare/python.py --max_mb=3 --vocab_size=512 --fim_rate=0

train -d --name="$name" 100000
killed=50  # the first saved step after the beginning
wait_for 120 went_on
"$engine" exec "$name" python tools/health.py | grep "^run: step"
"$engine" kill --signal=KILL "$name" >/dev/null
"$engine" wait "$name" >/dev/null 2>&1 || true
"$engine" rm -f "$name" >/dev/null
killed=$(step)
echo "killed after step $killed"

train -d --name="$name" 100000
wait_for 120 went_on
"$engine" logs "$name" 2>&1 | grep "going on from step [1-9]"
"$engine" stop --time=60 "$name" >/dev/null
"$engine" logs "$name" 2>&1 | grep "stopped at step"
"$engine" rm -f "$name" >/dev/null
stopped=$(step)

train --rm $((stopped + 50))
[ "$(step)" = $((stopped + 50)) ] || { echo "the training did not end"; exit 1; }
echo passed
