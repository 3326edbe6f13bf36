#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: builds the package with CUDA, runs all tests that need a GPU and the benchmarks, and
# writes one JSON, in less than 8 minutes.
#
#   tools/gpu.sh results.json              # everything that is possible here
#   tools/gpu.sh results.json library networks     # the library stays in build/gpu for later calls
#
# Parts, in this order: library (the build; in the background), kernels (their checks and times against cuDNN),
# sanitizer (the checks under compute-sanitizer), provider (the tests on onnxruntime's CUDA provider), networks (whole
# ones against it). The first three need nvcc, cmake, ninja, scikit-build-core, pybind11 and PyTorch, the rest
# onnxruntime-gpu, without which they are skipped. In the environment:
#   ONNXRUNTIME_INCLUDE_DIR  onnxruntime's headers, where there is no network to fetch them from
#   PERFONNX_NETWORKS        a folder of models for gpu_networks.py, else some are made, for which the package's
#                            dependencies must be there
#   PERFONNX_SMALL_NETWORKS  the same for its checks
#   PERFONNX_SITE            in place of the part `library`: a folder into which the package was installed before
#   PERFONNX_LIBRARY         for checks and networks, where there is no package: a library that was built before
#   PERFONNX_SECONDS         for the times of kernels and of networks each (default 90)
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
if [ $# -eq 0 ]; then sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; fi
result=$(realpath -m "$1"); shift
parts=" ${*:-library kernels sanitizer provider networks} "
seconds=${PERFONNX_SECONDS:-90}
work=$PWD/build/gpu
# Paths are taken from the repository's root, wherever a part runs.
for name in PERFONNX_SITE PERFONNX_LIBRARY PERFONNX_NETWORKS PERFONNX_SMALL_NETWORKS ONNXRUNTIME_INCLUDE_DIR; do
  [ -z "${!name:-}" ] || export "$name=$(realpath -m "${!name}")"
done
site=${PERFONNX_SITE:-$work/site}
mkdir -p "$work" && rm -rf "$work"/logs "$work"/run "$work"/*.json && mkdir "$work/logs"  # a library stays for later calls
failed=()

wanted() { [[ "$parts" == *" $1 "* ]]; }
# limit NAME SECONDS COMMAND...: runs it, its output into a log of that name, whose end is shown.
limit() {
  local name=$1 most=$2; shift 2
  local start=$SECONDS status=0
  timeout "$most" "$@" >"$work/logs/$name.log" 2>&1 || status=$?
  echo "== $name: exit status $status, $((SECONDS - start)) s"
  tail -n 25 "$work/logs/$name.log" | cut -c1-240
  [ $status -eq 0 ] || failed+=("$name")
  return $status
}

if wanted library; then
  rm -rf "$site"
  # Beside the kernels' checks, whose times are the device's own.
  timeout 300 python3 -m pip install . --quiet --no-build-isolation --no-deps --no-cache-dir --target "$site" \
    -C build-dir="$work/build" -C cmake.define.PERFONNX_CUDA=ON >"$work/logs/library.log" 2>&1 &
  building=$!
fi
if wanted kernels; then
  limit kernels $((seconds + 90)) python3 tools/gpu_kernels.py --json "$work/kernels.json" --seconds "$seconds"
fi
if wanted sanitizer && command -v compute-sanitizer >/dev/null; then
  built=build/cuda-kernels/libperfonnx_cuda_kernels.so
  [ -f "$built" ] || limit kernels 90 python3 tools/gpu_kernels.py --checks-only
  for kind in "any device" warpgroups; do
    limit "sanitizer, $kind" 90 compute-sanitizer --tool memcheck --error-exitcode 1 \
      python3 tools/gpu_kernels.py --library "$built" --kind "$kind"
  done
fi
if wanted library; then
  wait "$building" || failed+=(library)
  tail -n 5 "$work/logs/library.log"
fi
# What was installed, with the tests and tools but without the sources beside it.
mkdir "$work/run" && ln -s "$PWD/tests" "$PWD/tools" "$PWD/models" "$work/run" && cd "$work/run" || exit 2
export PYTHONPATH=$site:$work/run${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# Where PyTorch's packages keep the libraries of CUDA that onnxruntime looks for.
nvidia=$(python3 -c 'import nvidia; print(*nvidia.__path__, sep="\n")' 2>/dev/null | head -n 1)
if [ -n "$nvidia" ]; then
  libraries=$(find "$nvidia" -type d -name lib | paste -sd:)
  export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
library=$site/perfonnx/libperfonnx.so
[ -f "$library" ] || library=${PERFONNX_LIBRARY:-}
if ! wanted provider && ! wanted networks; then
  :
elif [ ! -f "$library" ]; then
  echo "== provider and networks are skipped: there is no library"
elif ! python3 -c 'import onnxruntime as o; raise SystemExit("CUDAExecutionProvider" not in o.get_available_providers())'; then
  echo "== provider and networks are skipped: this onnxruntime has no CUDA provider"
else
  small=${PERFONNX_SMALL_NETWORKS:-$work/small} networks=${PERFONNX_NETWORKS:-$work/networks}
  # make FOLDER NETWORK VARIANT OPTIONS...: the network, as `dense`, and rewritten.
  make() {
    mkdir -p "$1"
    [ -f "$1/$2_dense.onnx" ] || python3 -m models "$2" "$1/$2_dense.onnx" --batch N
    python3 -m perfonnx.cli rewrite "$1/$2_dense.onnx" "$1/$2_$3.onnx" --no-fallback -q "${@:4}" || failed+=("$2 $3")
  }
  if wanted provider && [ "$small" = "$work/small" ]; then
    make "$small" nin rate.5 --rate .5
    make "$small" nin nchw --rate .5 --interpolation barycentric --layout nchw
    make "$small" nin sparse --rate .5 --method sparse
    make "$small" resnet50 radius --method radius-adaptive
  fi
  if wanted networks && [ "$networks" = "$work/networks" ]; then
    for name in vgg16 resnet50; do
      make "$networks" $name rate0 --method exact
      make "$networks" $name rate.5 --rate .5
      make "$networks" $name rate.75 --rate .75
    done
  fi
  if wanted provider; then
    if python3 -c 'import perfonnx'; then
      limit provider 120 python3 -m pytest -q -c /dev/null --import-mode=importlib tests/cuda/test_provider.py
    else
      echo "== provider: the package is not installed in $site, which its tests need" && failed+=(provider)
    fi
    limit checks 90 python3 tools/gpu_networks.py check --library "$library" --json "$work/checks.json" "$small"/*.onnx
  fi
  if wanted networks; then
    limit networks $((seconds + 60)) python3 tools/gpu_networks.py time --library "$library" --budget "$seconds" \
      --json "$work/networks.json" "$networks"/*.onnx
  fi
fi

python3 - "$result" "$work" "${failed[@]}" <<'PYTHON'
import json, pathlib, shutil, subprocess, sys

result, work, *failed = sys.argv[1:]
parts = {path.stem: json.loads(path.read_text()) for path in sorted(pathlib.Path(work).glob("*.json"))}
query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"]
device = shutil.which(query[0]) and subprocess.run(query, capture_output=True, text=True).stdout.strip()
pathlib.Path(result).write_text(json.dumps({"device": device, "failed": failed, **parts}, indent=1))
PYTHON
echo "== failed: ${failed[*]:-nothing}"
[ ${#failed[@]} -eq 0 ]
