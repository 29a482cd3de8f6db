# Three images from one file:
#   server      serves a store on CPUs; no torch, no compiler     docker build --target server .      (the default)
#   server-gpu  the same on CUDA                                  docker build --target server-gpu .
#   builder     torch; `successor build` and `successor demo`     docker build --target builder .
#
# What pip is told besides its defaults comes in as build arguments and ends with the stage that reads it, for example
# an index that has torch without CUDA: --build-arg PIP_EXTRA_INDEX_URL=…

FROM python:3.11.14-slim-bookworm AS base
ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1


# The dependencies of pyproject.toml as one file for each extra: they change less often than the code does, and get a
# layer of their own.
FROM base AS requirements
WORKDIR /requirements
COPY constraints.txt pyproject.toml ./
RUN python -c "import pathlib, tomllib; \
project = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']; \
lists = {'all': project['dependencies'], **project['optional-dependencies']}; \
[pathlib.Path(name + '.txt').write_text('\n'.join(lines) + '\n') for name, lines in lists.items()]"


FROM base AS wheel
WORKDIR /source
COPY LICENSE README.md pyproject.toml ./
COPY model_store model_store
COPY service service
RUN --mount=type=cache,target=/root/.cache/pip pip wheel --no-deps --wheel-dir /wheels .


# A virtual environment without a pip of its own: nothing is ever installed into a server.
FROM requirements AS server-dependencies
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/venv && \
    pip --python /opt/venv/bin/python install --constraint constraints.txt -r all.txt -r cpu.txt -r grpc.txt -r otel.txt


FROM requirements AS server-gpu-dependencies
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/venv && \
    pip --python /opt/venv/bin/python install --constraint constraints.txt -r all.txt -r gpu.txt -r grpc.txt -r otel.txt \
        'onnxruntime-gpu[cuda,cudnn]'


# What all images have in common. The user has a number and no name, so that Kubernetes can see that it isn't root;
# it owns what volumes are mounted over, and a new volume takes that from here.
FROM base AS common
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Successor" \
      org.opencontainers.image.description="Compresses text classifiers, proves what it cost, and serves them over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
RUN install -d -o 10001 -g 10001 /store /var/lib/successor
# ONNX Runtime's own builds report to their maker unless they are told not to.
ENV HOME=/var/lib/successor \
    ORT_DISABLE_TELEMETRY=1 \
    SUCCESSOR_STORE_DIR=/store
WORKDIR /var/lib/successor
ENTRYPOINT ["successor"]


# torch is large, and pip needs to be there: the builder fetches pinned weights and texts with it.
FROM common AS builder
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=requirements,source=/requirements,target=/mnt \
    python -m venv /opt/venv && \
    pip install --constraint /mnt/constraints.txt \
        -r /mnt/all.txt -r /mnt/build.txt -r /mnt/compare.txt -r /mnt/cpu.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/mnt pip install --no-cache-dir --no-deps --no-index /mnt/*
ENV SUCCESSOR_CACHE_DIR=/var/lib/successor/cache
USER 10001:10001
CMD ["build", "sentiment"]


FROM common AS server-common
# In a container niceness ranks the service's own threads only: requests are read and answered before texts are computed.
ENV SUCCESSOR_HOST=0.0.0.0 \
    SUCCESSOR_STATE_DIR=/var/lib/successor \
    SUCCESSOR_WORKER_NICENESS=10
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "service.health_check"]
CMD ["serve"]


FROM server-common AS server-gpu
COPY --from=server-gpu-dependencies /opt/venv /opt/venv
RUN --mount=type=bind,from=wheel,source=/wheels,target=/mnt \
    pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index /mnt/*
# Where the wheels of CUDA and cuDNN keep their libraries; the driver's come from the host.
ENV LD_LIBRARY_PATH=/opt/venv/lib/python3.11/site-packages/nvidia/cu13/lib:/opt/venv/lib/python3.11/site-packages/nvidia/cudnn/lib \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    SUCCESSOR_PROVIDER=cuda
USER 10001:10001


FROM server-common AS server
COPY --from=server-dependencies /opt/venv /opt/venv
RUN --mount=type=bind,from=wheel,source=/wheels,target=/mnt \
    pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index /mnt/*
USER 10001:10001
