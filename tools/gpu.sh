#!/usr/bin/env bash
# ./run gpu-bundle builds here what travels to a machine with a GPU, one archive; ./run gpu-test and gpu-bench run there from it.
# Parts that passed before are not run again; every part ends within eight minutes; the report is one CSV, whose last column is
# the last line that a part printed: for figures, all of them as one JSON object.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

readonly kBundle=${FATHOM_GPU_BUNDLE:-build/gpu-bundle} kArchive=${FATHOM_GPU_ARCHIVE:-build/gpu-travel/gpu-bundle.tar.xz}
readonly kLimitMiB=18
readonly kTests=(test_cuda_ops test_cuda_bf16 test_cuda_model) kKernelBenches=(hopper_bench coded_bench)

fail() {
    printf 'gpu.sh: error: %s\n' "$*" >&2
    exit 1
}

bundle() {
    command -v nvcc >/dev/null || fail "no nvcc here: the bundle is built where CUDA 13 is installed"
    cmake --preset cuda >/dev/null
    cmake --build --preset cuda -j "${FATHOM_JOBS:-$(nproc)}" --target fathom fathom_cuda "${kTests[@]}" "${kKernelBenches[@]}"
    rm -rf "$kBundle" && mkdir -p "$kBundle/lib"
    local file
    for file in fathom libfathom_cuda.so; do strip -o "$kBundle/$file" "build/cuda/$file"; done
    for file in "${kTests[@]}"; do strip -o "$kBundle/$file" "build/cuda/tests/$file"; done
    for file in "${kKernelBenches[@]}"; do strip -o "$kBundle/$file" "build/cuda/bench/cuda_kernels/$file"; done
    # The PyTorch side of the comparisons, where this machine has it.
    [[ ! -d ../shared/bench ]] || cp ../shared/bench/torch_*.py "$kBundle/"
    # What Ubuntu does not have under the same name; the C++ runtime and glibc there are newer than ours.
    ldd "$kBundle"/fathom "$kBundle"/test_cuda_model | awk '$3 ~ /^\// {print $3}' | sort -u |
        { grep -Ev '/(libc|libm|libgcc_s|libstdc\+\+|libpthread|libdl|librt|ld-linux.*|libfathom_cuda)\.so' || true; } |
        while read -r file; do cp -L "$file" "$kBundle/lib/"; done
    git log -1 --format='%h %s' >"$kBundle/commit"
    mkdir -p "$(dirname "$kArchive")"
    tar c -C "$kBundle" . | xz -T0 -3 >"$kArchive.part" && mv "$kArchive.part" "$kArchive"
    du -h "$kArchive"
    local mib
    mib=$(du -m "$kArchive" | cut -f1)
    [[ $mib -le $kLimitMiB ]] || fail "$kArchive has $mib MiB, more than $kLimitMiB"
}

# --- on the machine with the GPU ---

readonly kReport=${FATHOM_GPU_REPORT:-bench/results/gpu-$(date +%F).csv}

# Of a log, as a field of a CSV: the JSON object that it ends with, else all timings of kernels, else its last line.
last_line() {
    python3 - "$1" <<'END'
import json, sys
text = open(sys.argv[1], errors="replace").read().rstrip()
lines = text.split("\n")
line = "; ".join(one for one in lines if one.startswith(("TIME", "fp8 sums"))) or lines[-1]
for begin in (i for i, one in enumerate(lines) if one.startswith("{")):
    try:
        line = json.dumps(json.loads("\n".join(lines[begin:])))
        break
    except ValueError:
        pass
print(line.replace('"', '""'))
END
}

# part NAME COMMAND...: runs a command unless it passed before, and adds a line to the report.
part() {
    local name=$1 began=$SECONDS status=pass log
    shift
    if grep -q "^$name,pass," "$kReport"; then
        echo "$name passed before"
        return
    fi
    log=$(mktemp)
    timeout 480 "$@" >"$log" 2>&1 || status=FAIL
    tail -n 25 "$log"
    printf '%s,%s,%d,"%s"\n' "$name" "$status" $((SECONDS - began)) "$(last_line "$log")" >>"$kReport"
    tail -n 1 "$kReport"
    rm -f "$log"
}

begin_report() {
    if [[ -f $kArchive && ! $kBundle/commit -nt $kArchive ]]; then
        mkdir -p "$kBundle" && tar xJmf "$kArchive" -C "$kBundle"
    fi
    [[ -x $kBundle/fathom ]] || fail "$kBundle has no bundle: build it with ./run gpu-bundle and bring it here"
    command -v nvidia-smi >/dev/null || fail "there is no NVIDIA GPU here"
    export LD_LIBRARY_PATH=$PWD/$kBundle/lib:$PWD/$kBundle
    mkdir -p "$(dirname "$kReport")"
    [[ -f $kReport ]] && return
    printf '# %s; %s; commit %s\npart,status,seconds,last line\n' "$(date -u +'%F %T UTC')" \
        "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader)" "$(cat "$kBundle/commit")" >"$kReport"
}

# Two runs and one that was interrupted and resumed end with the same bytes.
same_bytes() {
    local compute=$1 work run sums
    work=$(mktemp -d)
    local settings=(job.dir="$work/a" training.steps=6 checkpoint.every=3 training.dtype=bf16)
    local train=("$kBundle/fathom" --quiet --device cuda --compute "$compute" train tests/data/resume.toml)
    "${train[@]}" "${settings[@]}"
    "${train[@]}" "${settings[@]}" job.dir="$work/b"
    "${train[@]}" "${settings[@]}" job.dir="$work/c" --resume "$work/a/checkpoints/step-00000003"
    for run in a b c; do
        (cd "$work/$run/checkpoints/step-00000006" && cat model.safetensors optimizer/*.safetensors | sha256sum)
    done | tee "$work/sums"
    sums=$(sort -u "$work/sums" | wc -l)
    rm -rf "$work"
    [[ $sums -eq 1 ]] && echo "three runs of $compute, one of them resumed, end with the same bytes"
}

same_text() {
    local text
    text=$("$kBundle/fathom" --quiet generate models/stories --prompt "Once upon a time" --temperature 0 --max-new-tokens 80 --device "$1")
    printf '%s' "$text" | sha256sum
}
cpu_and_gpu_agree() {
    [[ "$(same_text cpu)" == "$(same_text cuda)" ]] && echo "80 greedy tokens of models/stories are the same on CPU and GPU"
}

sanitize() {
    command -v compute-sanitizer >/dev/null || fail "no compute-sanitizer here"
    compute-sanitizer --tool "$1" --error-exitcode 1 "$kBundle/$2" --gtest_brief=1 --gtest_filter="$3"
}

gpu_test() {
    begin_report
    local name
    for name in "${kTests[@]}"; do part "$name" env FATHOM_TEST_DATA="$PWD/tests/data" "$kBundle/$name" --gtest_brief=1; done
    part same-bytes-f32 "$BASH" "$0" call same_bytes f32
    part same-bytes-bf16 "$BASH" "$0" call same_bytes bf16
    part cpu-and-gpu "$BASH" "$0" call cpu_and_gpu_agree
    part memcheck "$BASH" "$0" call sanitize memcheck test_cuda_ops '-OneArithmetic.*'
    part memcheck-bf16 "$BASH" "$0" call sanitize memcheck test_cuda_bf16 '*Attention*:*Long*:*Groups*'
    part racecheck "$BASH" "$0" call sanitize racecheck test_cuda_ops 'Routing.*:Dispatch.*:Memory.*:NormRope.*'
    part racecheck-bf16 "$BASH" "$0" call sanitize racecheck test_cuda_bf16 '*Attention*:*Long*'
    part initcheck "$BASH" "$0" call sanitize initcheck test_cuda_ops '-OneArithmetic.*'
    cat "$kReport"
    ! grep -q ',FAIL,' "$kReport"
}

# Kernels alone, each beside its limit; their checks against plain kernels first.
kernels() {
    "$kBundle/hopper_bench" "$@"
}

# What PyTorch and transformers do, or why not.
peer() {
    [[ -f $kBundle/$1 ]] || fail "the bundle has no $1"
    python3 "$kBundle/$1" "${@:2}"
}

gpu_bench() {
    begin_report
    local section config=bench/configs/v2-lite.json dtype
    for section in gemm fp8 mla attention; do part "kernels-$section" "$BASH" "$0" call kernels "$section-check" "$section-time"; done
    part kernels-fp8-promotion "$BASH" "$0" call kernels fp8-promotion
    part kernels-few-bits "$kBundle/coded_bench"
    part peer-grouped "$BASH" "$0" call peer torch_grouped.py

    local fathom=("$kBundle/fathom" --quiet --device cuda --compute bf16)
    local weights=(--random-config "$config" --cache-type bf16 --repetitions 3 --json)
    for dtype in bf16 fp8 int4; do
        part "decode-1-$dtype" "${fathom[@]}" bench decode "${weights[@]}" --dtype "$dtype" --batch 1 --prompt-tokens 32 --max-new-tokens 64
        part "decode-128-$dtype" "${fathom[@]}" bench decode "${weights[@]}" --dtype "$dtype" --batch 128 --depth 512 --max-new-tokens 24
    done
    part decode-1-portable env FATHOM_CUDA_PORTABLE=1 "${fathom[@]}" bench decode "${weights[@]}" --dtype bf16 --batch 1 --prompt-tokens 32
    part decode-128-deterministic "${fathom[@]}" --deterministic bench decode "${weights[@]}" --dtype bf16 --batch 128 --depth 512 \
        --max-new-tokens 24
    part peer-decode "$BASH" "$0" call peer torch_decode.py
    for dtype in bf16 fp8; do
        part "prefill-$dtype" "${fathom[@]}" bench prefill "${weights[@]}" --dtype "$dtype" --batch 32 --prompt-tokens 1024
    done

    local model=(--random-config bench/configs/moe-1.3b-a0.28b.json --rows 8 --sequence-length 2048 --dtype bf16 --steps 3 --json)
    for dtype in bf16 fp8; do part "train-$dtype" "$kBundle/fathom" --quiet --device cuda --compute "$dtype" bench train "${model[@]}"; done
    part peer-train "$BASH" "$0" call peer torch_train.py
    part serve "$BASH" bench/serve_gpu.sh "$kBundle"
    cat "$kReport"
    ! grep -q ',FAIL,' "$kReport"
}

case "${1:-}" in
    bundle) bundle ;;
    test) gpu_test ;;
    bench) gpu_bench ;;
    call) shift && "$@" ;;
    *) fail "usage: gpu.sh bundle|test|bench" ;;
esac
