# The cloud server. From the repository's root: docker build -f deploy/docker/cloud.Dockerfile -t edgemux-cloud:0.1.0 .
# NOT BUILT where the project is made, which has no container engine; docs/deploy-cloud.md says what was checked instead.
# edge.Dockerfile is the same but for names and ports; a test compares them.
ARG PYTHON_TAG=3.11.14-slim-bookworm
# Empty: whatever the tag names today. For a build that can be repeated give "@sha256:...", which
#   docker buildx imagetools inspect python:3.11.14-slim-bookworm --format '{{.Manifest.Digest}}'
# prints (of the index, so that it holds for every architecture).
ARG PYTHON_DIGEST=""

FROM python:${PYTHON_TAG}${PYTHON_DIGEST} AS build
# What is inside is wheels for both architectures, by digest; nothing is compiled, so no compiler is needed.
COPY deploy/docker/pins/build.txt deploy/docker/pins/cloud.txt /opt/build/pins/
RUN python -m venv --without-pip /opt/edgemux \
 && python -m pip --python /opt/edgemux/bin/python install --no-cache-dir --only-binary=:all: --require-hashes \
      -r /opt/build/pins/cloud.txt \
 && python -m pip install --no-cache-dir --only-binary=:all: --require-hashes -r /opt/build/pins/build.txt
# .dockerignore says what of the repository comes along.
COPY . /opt/build/src
RUN python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /opt/build/wheel /opt/build/src \
 && python -m pip --python /opt/edgemux/bin/python install --no-cache-dir --no-deps /opt/build/wheel/edgemux-*.whl \
 && python -m pip --python /opt/edgemux/bin/python check \
 && /opt/edgemux/bin/edgemux --version

FROM python:${PYTHON_TAG}${PYTHON_DIGEST}
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="edgemux-cloud" \
      org.opencontainers.image.description="The edgemux cloud server: the full model, batched" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# The root may be read-only: Python writes no bytecode (what is installed has its own), and what is kept over a restart
# goes to /var/lib/edgemux. /tmp must be writable where there is TLS.
ENV PATH=/opt/edgemux/bin:$PATH \
    HOME=/var/lib/edgemux \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    OMP_NUM_THREADS=1
RUN install -d -o 10001 -g 10001 -m 0700 /var/lib/edgemux && install -d /etc/edgemux /models
COPY --from=build /opt/edgemux /opt/edgemux
USER 10001:10001
WORKDIR /var/lib/edgemux
EXPOSE 8000 8001 8002
# SIGTERM: refuse what is new, answer what was accepted (listen.drain_s, 10 s), end. Allow more than that before a kill.
STOPSIGNAL SIGTERM
# Of a server without TLS; with it: edgemux ready --help. It costs a process start, so not often once the server is up.
HEALTHCHECK --interval=30s --timeout=5s --start-period=90s --start-interval=2s --retries=3 CMD ["edgemux", "ready", "127.0.0.1:8000"]
ENTRYPOINT ["edgemux"]
CMD ["cloud", "--config", "/etc/edgemux/cloud.toml"]
