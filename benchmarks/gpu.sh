#!/usr/bin/env bash
# Everything that is measured on one GPU, in under eight minutes.
#
#   bash benchmarks/gpu.sh
#   PARTS=throughput SEQUENCES=512 bash benchmarks/gpu.sh
#   bash benchmarks/gpu.sh --smoke      # tiny shapes on the CPU, to see that it runs
#
# Parts, in this order: "depths" (cost of a step by depth at width 768), "overhead" (a short run
# with growths, compiled: their cost, the time to the first step), "throughput" (StackBERT beside
# transformers' Trainer at four sizes). What did not fit into the time is named in the reports; what
# torch.compile keeps on the disk makes a second call faster.
#
#   OUT        folder of the reports          benchmarks/results
#   PARTS      which                          depths overhead throughput
#   SEQUENCES  of throughput                  128,512
#   LIMIT      seconds for all of it          470
#   PYTHON     the interpreter                python3
#   WHEELS     folder of wheels to install, without any index, for this call alone
set -uo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"

smoke=""
case "${1:-}" in
  "") ;;
  --smoke) smoke=1 ;;
  --help | -h)
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
    exit 0
    ;;
  *)
    echo "gpu.sh knows --smoke and --help, not '$1'." >&2
    exit 2
    ;;
esac

out="${OUT:-$root/benchmarks/results}"
parts="${PARTS:-depths overhead throughput}"
limit="${LIMIT:-470}"
python="${PYTHON:-python3}"
for part in $parts; do
  case "$part" in
    depths | overhead | throughput) ;;
    *)
      echo "There is no part '$part'; PARTS may name depths, overhead and throughput." >&2
      exit 2
      ;;
  esac
done

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
# From the source: an installed StackBERT may be another one, or none.
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile \
    --target "$scratch/site" "$WHEELS"/*.whl || exit 2
  PYTHONPATH="$scratch/site:$PYTHONPATH"
fi

left() { echo $((limit - SECONDS)); }

failed=0
part() { # name, seconds at most, command …
  local name="$1" most="$2" time
  shift 2
  time="$(left)"
  if [ "$time" -lt 30 ]; then
    echo "== $name left out: $time s of LIMIT are left" >&2
    failed=1
    return
  fi
  most=$((most < time ? most : time))
  echo "== $name, $(left) s left"
  # Each ends itself in time; this is for one that hangs.
  timeout --kill-after=5 "$most" "$@" || {
    echo "== $name failed (exit code $?)" >&2
    failed=1
  }
}

throughput=("$python" "$root"/benchmarks/throughput.py --out "$out")
overhead=("$python" "$root"/benchmarks/overhead.py --out "$out")
if [ -n "$smoke" ]; then
  export CUDA_VISIBLE_DEVICES=""
  for name in $parts; do
    case "$name" in
      depths)
        part depths "$(left)" "${throughput[@]}" --smoke --name depths-smoke \
          --sizes 1x32 --depths 1,2,3 --shapes-per-process 3
        ;;
      overhead) part overhead "$(left)" "${overhead[@]}" --smoke ;;
      throughput) part throughput "$(left)" "${throughput[@]}" --smoke --contenders b,c-eager ;;
    esac
  done
else
  "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "There is no GPU here that torch can use. To see that the script runs: gpu.sh --smoke" >&2
    exit 2
  }
  command -v "${CXX:-g++}" > /dev/null || echo "== no C++ compiler: nothing can be compiled" >&2
  # In the order above, whatever the order in PARTS: throughput takes what time is left.
  case " $parts " in *" depths "*)
    part depths 150 "${throughput[@]}" --device cuda --name depths-gpu --sizes 12x768 \
      --depths 2,4,8,12 --sequences 128 --rounds 1 --steps 12 --warmup 4 \
      --shapes-per-process 4 --within 135
    ;;
  esac
  case " $parts " in *" overhead "*)
    part overhead 150 "${overhead[@]}" --recipe bert-base --depths 3,6,12 --budget 40s --starts 1 \
      --set compile=true --name overhead-gpu
    ;;
  esac
  case " $parts " in *" throughput "*)
    part throughput "$(left)" "${throughput[@]}" --device cuda --name throughput-gpu \
      --sizes 12x768,24x1024,6x256,12x512 --sequences "${SEQUENCES:-128,512}" \
      --contenders a,b,c-compiled --rounds 2 --steps 6 --warmup 3 \
      --shapes-per-process 2 --within "$(($(left) - 15))"
    ;;
  esac
fi
echo "== done after $SECONDS s; reports in $out"
exit "$failed"
