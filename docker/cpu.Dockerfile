# Every job at toy size, no GPU. `docker/build cpu` builds it. The code is not in the image: it is mounted at /repo.
ARG BASE=python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea

FROM ${BASE} AS packages
# Debian's packages as they were on this day; "" takes the sources that the base has (a mirror, a stand-in).
ARG SNAPSHOT=20261101T000000Z
RUN set -eu; \
    if [ -n "$SNAPSHOT" ]; then \
        sed -i -E "s#http://deb.debian.org/(debian|debian-security)\$#http://snapshot.debian.org/archive/\1/$SNAPSHOT#" \
            /etc/apt/sources.list.d/debian.sources; \
        echo 'Acquire::Check-Valid-Until "false";' > /etc/apt/apt.conf.d/snapshot; \
    fi; \
    apt-get update; \
    apt-get install --yes --no-install-recommends g++ libgomp1; \
    rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY docker/build.lock docker/cpu.lock docker/llama.cmake ./
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir --require-hashes -r build.lock
ARG TORCH_LINKS=https://download.pytorch.org/whl/cpu/torch/
RUN PATH=/opt/venv/bin:$PATH CMAKE_GENERATOR=Ninja CMAKE_ARGS=-DCMAKE_PROJECT_llama_cpp_INCLUDE=/build/llama.cmake \
    uv pip install --no-cache --compile-bytecode --python /opt/venv/bin/python --find-links "$TORCH_LINKS" \
        --require-hashes --no-build-isolation -r cpu.lock

FROM ${BASE}
COPY --from=packages /usr/lib/x86_64-linux-gnu/libgomp.so.1 /usr/lib/x86_64-linux-gnu/
COPY --from=packages /opt/venv /opt/venv
# Works under any --user: nothing is looked up in /etc/passwd, and what is written goes to /tmp or the mounted folders.
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp USER=jobs LOGNAME=jobs \
    HF_HOME=/hf XDG_CACHE_HOME=/repo/.cache
WORKDIR /repo
RUN python -c "import torch, transformers, trl, peft, datasets, evalplus, llama_cpp, gguf, openai, pydantic, click; \
    print(*(f'{m.__name__} {m.__version__}' for m in (torch, transformers, trl, peft, datasets, llama_cpp)))"
USER 1000:1000
ENTRYPOINT ["python", "-m", "jobs"]
