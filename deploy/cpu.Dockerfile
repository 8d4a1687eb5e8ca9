# A server on CPUs. From the repository's root:
#   docker build -f deploy/cpu.Dockerfile -t saccade:cpu .
#   docker run --read-only -p 8000:8000 -v ./bundles:/bundles:ro saccade:cpu /bundles/my_bundle
FROM python:3.12.12-slim-bookworm AS build
WORKDIR /source
COPY . .
# Without pip inside: the environment is copied into an image that installs nothing. What is installed is
# this folder; pyproject.toml has the versions of what it needs.
# hadolint ignore=DL3013
RUN python -m venv --without-pip /opt/saccade \
    && pip --python /opt/saccade/bin/python install --no-cache-dir ".[cpu,serve]"

FROM python:3.12.12-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home saccade
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
ENTRYPOINT ["saccade", "serve", "--host", "0.0.0.0"]
CMD ["digits-stvit"]
