# ragq.compressors._cpu: the C++ loops of the codecs.
set(native ${CMAKE_CURRENT_LIST_DIR})
set(tiles ${native}/tiles_baseline.cpp ${native}/scalar_baseline.cpp)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  list(APPEND tiles ${native}/tiles_avx2.cpp ${native}/tiles_avx512.cpp
    ${native}/scalar_avx2.cpp ${native}/scalar_avx512.cpp)
  set_source_files_properties(${native}/tiles_avx2.cpp ${native}/scalar_avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2")
  set_source_files_properties(${native}/tiles_avx512.cpp ${native}/scalar_avx512.cpp PROPERTIES COMPILE_OPTIONS "-mavx512f;-mavx512bw;-mprefer-vector-width=512")
endif()
nanobind_add_module(codecs_cpu NB_STATIC
  ${native}/module.cpp ${native}/tiles.cpp ${native}/kmeans.cpp ${native}/fixed.cpp ${native}/encode_pq.cpp ${native}/beam.cpp ${native}/chain.cpp
  ${native}/clusters.cpp ${native}/neighbours.cpp
  ${native}/scalar.cpp ${native}/scalar_module.cpp ${tiles})
# No contraction: distances are the same bits on every processor. nanobind's default -Os would undo the unrolling.
target_compile_options(codecs_cpu PRIVATE -O3 -ffp-contract=off)
set_target_properties(codecs_cpu PROPERTIES OUTPUT_NAME _cpu
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/compressors)
target_link_libraries(codecs_cpu PRIVATE Threads::Threads)
install(TARGETS codecs_cpu LIBRARY DESTINATION ragq/compressors)
