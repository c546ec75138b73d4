# ragq.retrievers.kernels._cpu: the scans behind ragq.retrievers.kernels.cpu.
include(${CMAKE_CURRENT_LIST_DIR}/loops.cmake)

nanobind_add_module(_cpu NB_STATIC ${CMAKE_CURRENT_LIST_DIR}/module.cpp)
target_link_libraries(_cpu PRIVATE Threads::Threads ragq_kernels)
install(TARGETS _cpu LIBRARY DESTINATION ragq/retrievers/kernels)
