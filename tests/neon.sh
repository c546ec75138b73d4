#!/bin/sh
# Build the C++ kernels for AArch64 and run their test under qemu: NEON against the scalar loops.
# Debian: apt-get install g++-aarch64-linux-gnu qemu-user
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
cmake -S "$here/native" -B "$build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux \
    -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
    -DCMAKE_EXE_LINKER_FLAGS=-static >/dev/null
cmake --build "$build" --parallel 2 >/dev/null
qemu-aarch64 "$build/kernels_test" 40
