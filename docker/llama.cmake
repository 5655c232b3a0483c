# Included by llama-cpp-python's build (CMAKE_PROJECT_llama_cpp_INCLUDE). Its CMakeLists.txt forces llama.cpp's `common`
# library on in the cache, though nothing of it reaches the Python package; a plain variable goes before the cache.
set(LLAMA_BUILD_COMMON OFF)
