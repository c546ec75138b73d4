# The library ragq_kernels: all C++ of the kernels but the Python module. The baseline flags run on any x86-64 and any
# ARM64; the loops of wide instruction sets are built one set at a time from one source, hold nothing that other files
# could link to by chance, and are chosen at the first call.
set(native ${CMAKE_CURRENT_LIST_DIR})
set(RAGQ_OPTIMIZE -O3 CACHE STRING "Optimisation level of the kernels")

add_library(ragq_kernels STATIC ${native}/bounds.cpp ${native}/common.cpp ${native}/dense.cpp ${native}/dispatch.cpp ${native}/hamming.cpp
                                ${native}/lists.cpp ${native}/lut.cpp
                                ${native}/lut_candidates.cpp ${native}/maxsim.cpp ${native}/planes.cpp)
target_compile_options(ragq_kernels PRIVATE ${RAGQ_OPTIMIZE} -ffp-contract=off -Wall -Wextra)
target_include_directories(ragq_kernels PUBLIC ${native})
set_target_properties(ragq_kernels PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)

function(ragq_instruction_set name)
  add_library(ragq_loops_${name} OBJECT ${native}/loops.cpp)
  target_compile_definitions(ragq_loops_${name} PRIVATE RAGQ_ISA=${name})
  target_compile_options(ragq_loops_${name} PRIVATE ${RAGQ_OPTIMIZE} -ffp-contract=off -Wall -Wextra ${ARGN})
  set_target_properties(ragq_loops_${name} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
  target_sources(ragq_kernels PRIVATE $<TARGET_OBJECTS:ragq_loops_${name}>)
endfunction()

ragq_instruction_set(scalar)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  ragq_instruction_set(avx2 -mavx2 -mfma -mf16c -mpopcnt)
  # GCC takes its own headers' placeholder vectors for uninitialised ones.
  ragq_instruction_set(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi -mavx512vnni -mavx512vpopcntdq
                       -mfma -mf16c -mpopcnt -Wno-uninitialized -Wno-maybe-uninitialized)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  ragq_instruction_set(neon)
endif()
