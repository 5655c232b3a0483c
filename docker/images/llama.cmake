# How llama-cpp-python is built here, in the images and in .venv: CMAKE_PROJECT_llama_cpp_INCLUDE names this file. Plain
# variables go before the cache, where its CMakeLists.txt forces `common` on, though the Python package has nothing of it.
set(GGML_NATIVE OFF)  # for any x86-64 with AVX2, whatever this machine is
set(LLAVA_BUILD OFF)
set(LLAMA_OPENSSL OFF)
set(LLAMA_BUILD_COMMON OFF)
# CUDA where the base image has all of it; docker/install says no, since .venv serves the CPU.
if(NOT "$ENV{LLAMA_CUDA}" STREQUAL "OFF" AND EXISTS /usr/local/cuda/bin/nvcc AND EXISTS /usr/local/cuda/include/cublas_v2.h)
    set(GGML_CUDA ON)
    set(GGML_CUDA_NO_VMM ON)  # does not link the driver, so it also works where there is none
    set(CMAKE_CUDA_ARCHITECTURES 80 89 90 100)  # A100, L4 and RTX 40, H100, B200
endif()
