# The orchestrator's image: workers, the simulated exchange and the command line. Built from the lock files, run as an ordinary user.
FROM python:3.11-slim AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_HTTP_TIMEOUT=180
WORKDIR /build
RUN python -m venv /opt/orchestrator
# Libraries first: they change less often than the code.
COPY requirements-build.lock requirements.lock ./
RUN /opt/orchestrator/bin/pip install --quiet --require-hashes -r requirements-build.lock \
 && /opt/orchestrator/bin/uv pip sync --quiet --python /opt/orchestrator/bin/python --require-hashes --compile-bytecode requirements.lock
COPY pyproject.toml requirements.in README.md LICENSE ./
COPY schemas schemas
COPY pipeline pipeline
COPY infra infra
COPY embedded embedded
COPY simulator simulator
COPY verification verification
COPY agents agents
COPY cli cli
RUN /opt/orchestrator/bin/uv pip install --quiet --python /opt/orchestrator/bin/python --no-deps --no-build-isolation --compile-bytecode .

FROM python:3.11-slim

LABEL org.opencontainers.image.title="crypto-orchestrator" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --create-home --uid 10001 orchestrator \
 && install -d -o orchestrator -g orchestrator /var/lib/orchestrator
COPY --from=build /opt/orchestrator /opt/orchestrator
ENV PATH=/opt/orchestrator/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORCHESTRATOR_DATA_DIR=/var/lib/orchestrator
USER orchestrator
WORKDIR /home/orchestrator
# A worker finishes its batch on SIGTERM; see stop_grace_period in docker-compose.yml.
STOPSIGNAL SIGTERM
ENTRYPOINT ["orchestrator"]
CMD ["--help"]
