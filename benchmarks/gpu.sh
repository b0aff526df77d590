#!/usr/bin/env bash
# What is measured on one GPU, in under eight minutes.
#
#   bash benchmarks/gpu.sh
#   PARTS=throughput SEQUENCES=512 bash benchmarks/gpu.sh
#
# Parts, in this order: "depths" (cost of a step by depth at width 768), "overhead" (a short compiled
# run with growths), "throughput" (StackBERT next to transformers' Trainer at four sizes). The reports
# name what did not fit into the time; what torch.compile keeps on the disk makes a second call faster.
#
#   OUT        folder of the reports                                    benchmarks/results
#   PARTS      which                                                    depths overhead throughput
#   SEQUENCES  of throughput                                            128,512
#   LIMIT      seconds for all of it                                    470
#   PYTHON     the interpreter                                          python3
#   WHEELS     folder of wheels to install for this call, without an index
set -uo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
out="${OUT:-$root/benchmarks/results}"
parts=" ${PARTS:-depths overhead throughput} "
limit="${LIMIT:-470}"
python="${PYTHON:-python3}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
export TOKENIZERS_PARALLELISM=false PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile \
    --target "$scratch/site" "$WHEELS"/*.whl || exit 2
  PYTHONPATH="$scratch/site:$PYTHONPATH"
fi
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "There is no GPU here that torch can use." >&2
  exit 2
}
command -v "${CXX:-g++}" > /dev/null || echo "== no C++ compiler: nothing can be compiled" >&2

failed=0
part() { # name, seconds at most, script, options …
  local name="$1" most="$2" script="$3" left=$((limit - SECONDS))
  shift 3
  case "$parts" in *" $name "*) ;; *) return ;; esac
  most=$((most < left ? most : left))
  echo "== $name, $left s left"
  timeout --kill-after=5 "$most" "$python" "$root/benchmarks/$script" --out "$out" \
    --name "$name-gpu" "$@" || {
    echo "== $name failed (exit code $?)" >&2
    failed=1
  }
}

part depths 150 throughput.py --sizes 12x768 --depths 2,4,8,12 --sequences 128 \
  --setups stackbert-compiled --rounds 1 --steps 12 --within 135
part overhead 150 overhead.py --recipe bert-base --depths 3,6,12 --budget 40s --starts 1 \
  --set compile=true
part throughput "$limit" throughput.py --sizes 12x768,24x1024,6x256,12x512 \
  --sequences "${SEQUENCES:-128,512}" --setups trainer,trainer-fast,stackbert-compiled \
  --rounds 2 --steps 6 --warmup 3 --within "$((limit - SECONDS - 15))"
echo "== done after $SECONDS s; reports in $out"
exit "$failed"
