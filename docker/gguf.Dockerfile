# Writing, quantizing and verifying GGUF files against the model they come from. `docker/build gguf` builds it. The code is mounted at /repo.
# devel: it has nvcc, and llama.cpp is built with CUDA where there is one (llama.cmake).
ARG BASE=nvidia/cuda:13.0.3-devel-ubuntu24.04@sha256:b7ae301dea2c162444795462ce17a05f6a516e5a75944b57af5b88540a1a2266

FROM ${BASE}
# Ubuntu's packages as they were on this day; "" takes the sources that the base has (a mirror, a stand-in).
ARG SNAPSHOT=20261101T000000Z
RUN set -eu; \
    if [ -n "$SNAPSHOT" ]; then \
        rm -f /etc/apt/sources.list.d/cuda*; \
        sed -i -E "s#http://(archive|security).ubuntu.com/ubuntu/?#https://snapshot.ubuntu.com/ubuntu/$SNAPSHOT#" \
            /etc/apt/sources.list.d/ubuntu.sources; \
    fi; \
    apt-get update; \
    apt-get install --yes --no-install-recommends python3 python3-venv g++ libgomp1; \
    rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY docker/build.lock docker/gguf.lock docker/llama.cmake ./
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir --require-hashes -r build.lock
# The CPU build of torch: what the files must answer like is computed in float32, and the base already has CUDA.
ARG TORCH_LINKS=https://download.pytorch.org/whl/cpu/torch/
RUN PATH=/opt/venv/bin:/usr/local/cuda/bin:$PATH CMAKE_GENERATOR=Ninja \
    CMAKE_ARGS=-DCMAKE_PROJECT_llama_cpp_INCLUDE=/build/llama.cmake \
    uv pip install --no-cache --compile-bytecode --python /opt/venv/bin/python --find-links "$TORCH_LINKS" \
        --require-hashes --no-build-isolation -r gguf.lock
# Works under any --user: nothing is looked up in /etc/passwd, and what is written goes to /tmp or the mounted folders.
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp USER=jobs LOGNAME=jobs \
    HF_HOME=/hf XDG_CACHE_HOME=/repo/.cache
WORKDIR /repo
RUN python -c "import gguf, llama_cpp, numpy, torch, transformers, peft, pydantic, click; \
    print('llama_cpp', llama_cpp.__version__, 'torch', torch.__version__, llama_cpp.llama_print_system_info().decode())"
USER 1000:1000
ENTRYPOINT ["python", "-m", "jobs"]
