# Training, generation and evaluation on a GPU. `docker/build train` builds it. The code is mounted at /repo.
# devel: Triton and FlashInfer compile kernels at run time.
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
    apt-get install --yes --no-install-recommends python3 python3-venv python3-dev g++; \
    rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY docker/build.lock docker/train.lock ./
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir --require-hashes -r build.lock
RUN PATH=/opt/venv/bin:$PATH uv pip install --no-cache --compile-bytecode --python /opt/venv/bin/python \
        --require-hashes --no-build-isolation -r train.lock
# Works under any --user: nothing is looked up in /etc/passwd, and what is written goes to /tmp or the mounted folders.
# Unsloth writes the trainers it compiles beside the caller unless told otherwise, and /repo is read-only.
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp USER=jobs LOGNAME=jobs \
    HF_HOME=/hf XDG_CACHE_HOME=/repo/.cache TRITON_CACHE_DIR=/repo/.cache/triton VLLM_CACHE_ROOT=/repo/.cache/vllm \
    UNSLOTH_COMPILE_LOCATION=/tmp/unsloth VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
WORKDIR /repo
# Unsloth refuses to be imported without a GPU, so it is only looked for.
RUN HF_HOME=/tmp/hf XDG_CACHE_HOME=/tmp/cache VLLM_CACHE_ROOT=/tmp/vllm TRITON_CACHE_DIR=/tmp/triton \
    python -c "import torch, transformers, trl, peft, datasets, accelerate, bitsandbytes, vllm, evalplus, openai, pydantic, click; \
    import importlib.metadata as m, importlib.util as u; assert u.find_spec('unsloth') and u.find_spec('unsloth_zoo'); \
    print(*(f'{n} {m.version(n)}' for n in ('torch', 'transformers', 'trl', 'peft', 'unsloth', 'vllm', 'bitsandbytes')))"
USER 1000:1000
ENTRYPOINT ["python", "-m", "jobs"]
