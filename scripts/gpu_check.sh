#!/usr/bin/env bash
# One GPU, under ten minutes, no network: the GPU-marked tests, then the benchmark; one JSON and its figures.
#
#   bash scripts/gpu_check.sh [arguments of scripts/gpu_benchmark.py]      such as parts=S1,S2,S3 or tiny=true
#
# Its Python must have torch 2.11 or newer with CUDA, lightning and transformers. What else is missing travels as wheels
# in wheels/ (ignored by git), fetched beforehand where there is a network, for that machine's Python (3.12 here):
#
#   python -m pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels \
#       omegaconf==2.3.1 hydra-core==1.3.8 plotly==6.1.2 submitit==1.5.3
#   python -m pip wheel --no-deps -w wheels antlr4-python3-runtime==4.9.3   # there is no wheel of it
#
# Wheels whose module is there already are not installed, and the machine's torch is never touched. Leaves gpu.json and
# figures in $OUT (outputs/gpu if unset), tests.log and benchmark.log beside them. Exit code 1 if a part failed.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3} out=${OUT:-outputs/gpu} tests_s=${TESTS_S:-150} benchmark_s=${BENCHMARK_S:-400}
mkdir -p "$out"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

there() { "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)" 2>/dev/null; }

declare -A module=([antlr4_python3_runtime]=antlr4 [hydra_core]=hydra [fla_core]=fla)
for wheel in wheels/*.whl; do
    [ -e "$wheel" ] || continue
    name=$(basename "$wheel" | cut -d- -f1)
    there "${module[$name]:-$name}" && continue
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheel" || true
done
for needed in torch lightning transformers hydra omegaconf antlr4 plotly submitit pytest hypothesis; do
    there "$needed" || { echo "error: $needed is missing here: bring its wheel in wheels/ (see the head of $0)" >&2; exit 2; }
done

mapfile -t files < <(grep -rl --include="test_*.py" "mark.gpu" tests)
CUBLAS_WORKSPACE_CONFIG=:4096:8 timeout "$tests_s" "$python" -m pytest -m gpu -p no:cacheprovider -rs "${files[@]}" 2>&1 | tee "$out/tests.log"
tests_rc=${PIPESTATUS[0]}
timeout $((benchmark_s + 20)) "$python" scripts/gpu_benchmark.py limit_s="$benchmark_s" output="$out" "$@" 2>&1 |
    tee "$out/benchmark.log"
benchmark_rc=${PIPESTATUS[0]}

"$python" - "$out" "$tests_rc" "$benchmark_rc" <<'PYTHON'
import json, pathlib, sys

folder, tests_rc, benchmark_rc = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
path = folder / "gpu.json"
whole = json.loads(path.read_text()) if path.is_file() else {"parts": {}}
lines = (folder / "tests.log").read_text().splitlines()
error = "out of time" if tests_rc == 124 else None
whole["tests"] = {"exit_code": tests_rc, "error": error, "last_lines": lines[-30:]}
whole["benchmark_exit_code"] = benchmark_rc
path.write_text(json.dumps(whole, indent=2) + "\n")
for name, part in whole["parts"].items():
    print(f"{name}: {part['status']} {part.get('error', '')}")
print(f"tests: exit code {tests_rc}; {path}")
PYTHON
[ "$tests_rc" -eq 0 ] && [ "$benchmark_rc" -eq 0 ]
