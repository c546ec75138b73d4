#!/bin/sh
# Build the C++ kernels with the address and undefined-behaviour sanitizers, run their test once, and check that the
# files of wide instruction sets define no symbol that the linker could use in place of a baseline one.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
cmake -S "$here/native" -B "$build/sanitized" -DCMAKE_BUILD_TYPE=Release -DRAGQ_SANITIZE=ON -DRAGQ_OPTIMIZE=-O1 >/dev/null
cmake --build "$build/sanitized" --parallel 2 >/dev/null
"$build/sanitized/kernels_test" 30

cmake -S "$here/native" -B "$build/plain" -DCMAKE_BUILD_TYPE=Release >/dev/null
cmake --build "$build/plain" --parallel 2 >/dev/null
for object in $(find "$build/plain" -path '*ragq_loops_*' -name '*.o'); do
    if nm -C "$object" | grep -E ' [VWu] '; then
        echo "$object defines shared symbols: a processor without its instructions could run them" >&2
        exit 1
    fi
done
"$build/plain/kernels_test" 200
