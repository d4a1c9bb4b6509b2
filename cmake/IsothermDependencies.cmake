# Every dependency comes from the distribution's packages (see tools/setup/install-dependencies.sh).
find_package(Threads REQUIRED)
find_package(Protobuf REQUIRED)
find_package(absl REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(spdlog REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED)
find_package(hwy CONFIG REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(sentencepiece REQUIRED IMPORTED_TARGET sentencepiece)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)

# dnnl's own package file asks for OpenCL headers that a CPU build does not need.
find_library(ISOTHERM_DNNL_LIBRARY dnnl REQUIRED)
add_library(isotherm_dnnl INTERFACE)
target_link_libraries(isotherm_dnnl INTERFACE ${ISOTHERM_DNNL_LIBRARY})

find_program(ISOTHERM_CCACHE ccache)
if(ISOTHERM_CCACHE)
  set(CMAKE_C_COMPILER_LAUNCHER ${ISOTHERM_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${ISOTHERM_CCACHE})
endif()

find_program(ISOTHERM_LLD ld.lld)
if(ISOTHERM_LLD)
  add_link_options(-fuse-ld=lld)
endif()
