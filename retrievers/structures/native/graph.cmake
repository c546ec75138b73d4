# ragq.retrievers.structures._graph: graphs over two-bit codes.
nanobind_add_module(_graph NB_STATIC ${CMAKE_CURRENT_LIST_DIR}/module.cpp ${CMAKE_CURRENT_LIST_DIR}/graph.cpp)
target_compile_options(_graph PRIVATE -O3 -Wall -Wextra)
target_link_libraries(_graph PRIVATE Threads::Threads)
install(TARGETS _graph LIBRARY DESTINATION ragq/retrievers/structures)
