#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in steps of under nine minutes each.
set -uo pipefail

usage() {
  cat <<'END'
usage: bench/gpu.sh OUT [STEP...]

Builds fastconv in place for this GPU alone (where the sources changed), then runs the steps, by
default all in this order, and writes what they find into the folder OUT as it comes:

  test      pytest tests/test_gpu.py, test_gpu_grad.py                   OUT/test.txt
  layers    every layer beside torch and cuDNN (bench/gpu_layers.py)     OUT/layers.json, .txt
  backward  poolings and adds, forward and backward (bench/gpu_pools.py),
            and gradients of every layer, beside torch                   OUT/pools.json, backward.json, .txt
  networks  the networks whole (bench/gpu_networks.py)                   OUT/networks.json, .txt
  train     pytest tests/test_gpu_train.py, then whole training steps and
            their memory beside torch (bench/gpu_train.py), ResNet-50's
            in batches of 64                                             OUT/train*.json, .txt
  triton    layers, forward and backward, and poolings with Triton's
            kernels too, then pytest tests/test_triton_gpu.py            OUT/triton*.json, .txt
  sanitize  compute-sanitizer's memcheck and racecheck on a small grid   OUT/memcheck.txt, …
  compile   layers beside torch.compile, which takes long                OUT/layers.json, compile.txt

A step is stopped after nine minutes; what measures stops by itself before, and goes on where it
ended when run again with the same OUT. With TOTAL the steps share that many seconds evenly, and
what one leaves goes to the next. OUT/steps.json says what became of each step, OUT/bars.txt which
gains and shares that the kernels are to reach are reached.
It needs torch with CUDA, triton, pybind11, setuptools, pytest (hypothesis for "triton"; rich and
mlxtend for the tests of the commands, which are skipped without) and a CUDA toolkit (nvcc;
compute-sanitizer). Where pytest-xdist is installed, tests run in several processes.

environment: PYTHON (python3), LIMIT (seconds of a step, 530), TOTAL (seconds of all steps and the
             build, by default no limit), FASTCONV_CUDA_ARCHS (this GPU's)
exit status: 0 all steps passed, 1 one failed, 2 wrong use or no GPU
END
}

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  "" | -*) usage >&2; exit 2 ;;
esac
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
most=${LIMIT:-530}
limit=$most
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# The tests' default is Triton's interpreter; of the CPU's kernels nothing here runs but a few.
export TRITON_INTERPRET=0 FASTCONV_BUILD_ISAS=${FASTCONV_BUILD_ISAS:-baseline}
all=(test layers backward networks train triton sanitize compile)
[ $# -gt 0 ] || set -- "${all[@]}"
for step; do
  case " ${all[*]} " in
    *" $step "*) ;;
    *) echo "bench/gpu.sh: no step $step; steps are ${all[*]}" >&2; exit 2 ;;
  esac
done

"$python" -c '
import re, setuptools
if int(re.match("[0-9]+", setuptools.__version__)[0]) < 77:
    raise SystemExit(f"bench/gpu.sh: the build needs setuptools 77, here is {setuptools.__version__}")
' || exit 2
capability=$("$python" -c '
import torch
if not torch.cuda.is_available():
    raise SystemExit(f"bench/gpu.sh: torch {torch.__version__} finds no NVIDIA GPU here")
print("%d%d" % torch.cuda.get_device_capability())') || exit 2
[ "$capability" = 90 ] && capability=90a
export FASTCONV_CUDA=1 FASTCONV_CUDA_ARCHS=${FASTCONV_CUDA_ARCHS:-$capability}

started=$SECONDS # the build is part of the first step's nine minutes
stamp=build/gpu.stamp
state=$({ find csrc setup.py -type f -print0 | sort -z | xargs -0 sha256sum
  echo "$FASTCONV_CUDA_ARCHS $FASTCONV_BUILD_ISAS"; "$python" -c 'import sys, torch; print(sys.version, torch.__version__)'
} | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$state" ]; then
  rm -f "$stamp"
  echo "building for sm_$FASTCONV_CUDA_ARCHS"
  if ! timeout -k 10 "${TOTAL:-$most}" "$python" setup.py build_ext --inplace >"$out/build.txt" 2>&1; then
    tail -20 "$out/build.txt" >&2
    echo "bench/gpu.sh: the build failed: $out/build.txt" >&2
    exit 1
  fi
  mkdir -p build && echo "$state" >"$stamp"
fi
[ -z "${TOTAL:-}" ] || started=$SECONDS

# PARTS: how many of the step's commands, this one too, share the time that is left of it.
share() { echo $(((limit - (SECONDS - started)) / $1)); }
limited() { # PARTS COMMAND...
  local seconds
  seconds=$(share "$1")
  [ "$seconds" -gt 0 ] || { echo "no time left for: ${*:2}"; return 124; }
  timeout -k 10 "$seconds" "${@:2}"
}
tests() { # PARTS TEST...; pytest tells what failed when it is interrupted, without its workers
  local seconds
  seconds=$(share "$1")
  limited "$1" timeout --foreground -s INT $((seconds - (seconds < 60 ? seconds / 4 : 15))) \
    "${pytest[@]}" "${workers[@]}" "${@:2}"
}
bench() { # PARTS SCRIPT NAME [OPTION...]; stops by itself where time for one more row is left
  local seconds status=75
  while [ "$status" -eq 75 ]; do # the GPU took no more work from that process: another goes on
    seconds=$(share "$1")
    limited 1 "$python" "bench/gpu_$2.py" "${@:4}" \
      --seconds $((seconds - (seconds < 225 ? seconds / 5 : 45))) --json "$out/$3.json"
    status=$?
  done
  return $status
}
pytest=("$python" -m pytest -q --tb=short -p no:cacheprovider -o addopts=)
workers=()
"$python" -c 'import xdist' 2>/dev/null && workers=(-n 8)

step_test() { tests 1 tests/test_gpu.py tests/test_gpu_grad.py; }
step_layers() { bench 1 layers layers --compile ""; }
step_backward() {
  local failed=0
  bench 2 pools pools --precision float16 --precision float32 || failed=$?
  bench 1 layers backward --backward --precision float16 --precision tf32 --precision float32 ||
    failed=$?
  return $failed
}
step_networks() { bench 1 networks networks; }
step_train() {
  local failed=0
  tests 2 tests/test_gpu_train.py || failed=$?
  bench 2 train train64 --batch 64 --filter resnet50 --precision float16 || failed=$?
  bench 1 train train || failed=$?
  return $failed
}
step_triton() {
  local failed=0
  bench 4 layers triton --triton --precision float16 --compile "" || failed=$?
  bench 3 layers triton_backward --triton --backward --precision float16 || failed=$?
  bench 2 pools triton_pools --triton --precision float16 || failed=$?
  tests 1 tests/test_triton_gpu.py || failed=$?
  return $failed
}
step_compile() { bench 1 layers layers --precision float16; } # goes on in the file of "layers"

step_sanitize() { # every tensor is an allocation of its own, or memcheck would see one large block
  local sanitizer tool more parts=2 failed=0
  sanitizer=$(find_sanitizer) || {
    echo "no compute-sanitizer, which comes with the CUDA toolkit: set CUDA_HOME"
    return 1
  }
  for tool in memcheck racecheck; do
    more=() # torch asks CUDA's interface for things that it may not have
    [ $tool = racecheck ] || more=(--report-api-errors no)
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited $((parts--)) "$sanitizer" --tool "$tool" \
      "${more[@]}" --error-exitcode 9 --kernel-name kns=fastconv --log-file "$out/$tool.txt" \
      "${pytest[@]}" tests/test_gpu.py tests/test_gpu_grad.py -k small || failed=1
    echo "$tool: $(tail -n 1 "$out/$tool.txt")"
  done
  return $failed
}
find_sanitizer() {
  local home
  for home in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda; do
    [ -x "$home/bin/compute-sanitizer" ] && echo "$home/bin/compute-sanitizer" && return
  done
  command -v compute-sanitizer
}

failed=0
report=
for step; do
  if [ -n "${TOTAL:-}" ]; then # an even share of what is left
    limit=$(((TOTAL - started) / $#))
    [ "$limit" -le "$most" ] || limit=$most
  fi
  shift
  echo "== $step"
  "step_$step" 2>&1 | tee "$out/$step.txt"
  status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || failed=1
  report+="${report:+, }{\"step\": \"$step\", \"status\": $status, \"seconds\": $((SECONDS - started))}"
  echo "[$report]" >"$out/steps.json.part" && mv "$out/steps.json.part" "$out/steps.json"
  started=$SECONDS
done
echo "== steps; status 124: stopped by the time limit"
cat "$out/steps.json"
"$python" bench/gpu_bars.py "$out" | tee "$out/bars.txt"
exit $failed
