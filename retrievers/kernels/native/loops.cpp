// The loops of one instruction set; built once a set, with its compiler flags and RAGQ_ISA naming it.
#define RAGQ_ISA_scalar 1
#define RAGQ_ISA_avx2 2
#define RAGQ_ISA_avx512 3
#define RAGQ_ISA_neon 4
#define RAGQ_CODE_(isa) RAGQ_ISA_##isa
#define RAGQ_CODE(isa) RAGQ_CODE_(isa)
#define RAGQ_NAME_(isa) loops_##isa
#define RAGQ_NAME(isa) RAGQ_NAME_(isa)

#if RAGQ_CODE(RAGQ_ISA) == 1
#include "simd_scalar.h"
#elif RAGQ_CODE(RAGQ_ISA) == 2
#include "simd_avx2.h"
#elif RAGQ_CODE(RAGQ_ISA) == 3
#include "simd_avx512.h"
#else
#include "simd_neon.h"
#endif

namespace ragq {
namespace RAGQ_ISA {
namespace {

#include "lut_loops.h"
#if RAGQ_CODE(RAGQ_ISA) == 3
#include "lut8_avx512.h"
#include "plane_avx512.h"
#else
#include "lut8_loops.h"
constexpr bool kWholeBytes = false;
constexpr void (*kPlane)(const LutRun&, const LutQuery*, int) = nullptr;
#endif
#include "dense_values.h"
#if RAGQ_CODE(RAGQ_ISA) == 3
#include "minifloat_avx512.h"
#endif
#include "dense_loops.h"
#include "hamming_loops.h"
#if RAGQ_CODE(RAGQ_ISA) == 3
#include "dots_avx512.h"
#include "hamming_avx512.h"
#else
#include "dots_loops.h"
constexpr auto kHamming = hamming;
#endif

}  // namespace
}  // namespace RAGQ_ISA

const Loops RAGQ_NAME(RAGQ_ISA) = {
    RAGQ_ISA::kName,       RAGQ_ISA::kPairs,      RAGQ_ISA::kWholeBytes, RAGQ_ISA::lut4,    RAGQ_ISA::lut8,
    RAGQ_ISA::kPlane,      RAGQ_ISA::kHamming,    RAGQ_ISA::dense,       RAGQ_ISA::dots_i8, RAGQ_ISA::join_planes,
    RAGQ_ISA::weigh_bits,
};

}  // namespace ragq
