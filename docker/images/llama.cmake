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
# llama.cpp's own converter of model folders to GGUF, from the same source archive: jobs/gguf runs it. Its gguf-py is newer
# than the package of that name, and so lies beside it, off Python's path.
set(LLAMA_CONVERTER ${SKBUILD_PLATLIB_DIR}/llama_cpp/converter)
install(DIRECTORY vendor/llama.cpp/conversion vendor/llama.cpp/gguf-py/gguf DESTINATION ${LLAMA_CONVERTER})
install(FILES vendor/llama.cpp/LICENSE DESTINATION ${LLAMA_CONVERTER})
