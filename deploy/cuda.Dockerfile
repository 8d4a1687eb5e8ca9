# A server on NVIDIA GPUs, by ONNX Runtime. From the repository's root:
#   docker build -f deploy/cuda.Dockerfile -t saccade:cuda .
#   docker run --gpus all --read-only -p 8000:8000 -v ./bundles:/bundles:ro saccade:cuda /bundles/my_bundle
# ONNX Runtime's wheel and the base must be of one CUDA: 1.31 is built for CUDA 13 and cuDNN 9.
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 AS build
# Of the pinned base's release; this stage is thrown away.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
# Without pip inside: the environment is copied into an image that installs nothing. What is installed is
# this folder; pyproject.toml has the versions of what it needs.
# hadolint ignore=DL3013
RUN python3 -m venv --without-pip /opt/saccade \
    && python3 -m pip --python /opt/saccade/bin/python install --no-cache-dir ".[gpu,serve]" "onnxruntime-gpu==1.31.1"

FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04
# The interpreter of the pinned base's release, with its security fixes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home saccade
COPY --from=build /opt/saccade /opt/saccade
ENV PATH="/opt/saccade/bin:$PATH" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SACCADE_HOME=/bundles
USER 10001:10001
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/live', timeout=2)"]
# No shell between: the server itself gets SIGTERM, and drains.
ENTRYPOINT ["saccade", "serve", "--host", "0.0.0.0", "--device", "cuda"]
CMD ["digits-stvit"]
