# The image: kernels compiled at build time, nobody's privileges, nothing written but /data.
#
#   docker build -t meshpulse .
#   docker run --read-only -v meshpulse:/data -v ./meshpulse.yml:/etc/meshpulse/meshpulse.yml:ro -p 9090:9090 meshpulse
#
# tests/deploy/test_image.py does what this file does, without docker.

ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY tsdb tsdb
COPY ingest ingest
COPY query query
COPY health health
COPY meshpulse meshpulse
RUN python -m venv /opt/meshpulse \
 && /opt/meshpulse/bin/pip install -c constraints.txt .
# The oldest CPU the image shall run on; compiled kernels are found again only under the same name. Any x86 server since
# 2013 is x86-64-v3; on ARM build with --build-arg CPU=neoverse-n1.
ARG CPU=x86-64-v3
ENV NUMBA_CPU_NAME=${CPU} NUMBA_CPU_FEATURES="" MESHPULSE_KERNEL_CACHE=/opt/meshpulse/kernels
RUN /opt/meshpulse/bin/meshpulse warm \
 && chmod -R a+rX /opt/meshpulse

FROM ${PYTHON}
ARG CPU=x86-64-v3
ENV NUMBA_CPU_NAME=${CPU} NUMBA_CPU_FEATURES="" MESHPULSE_KERNEL_CACHE=/opt/meshpulse/kernels
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin meshpulse \
 && install -d -o 10001 -g 10001 /data
COPY --from=build /opt/meshpulse /opt/meshpulse
USER 10001:10001
VOLUME /data
EXPOSE 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s CMD ["/opt/meshpulse/bin/python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/-/healthy', timeout=2)"]
ENTRYPOINT ["/opt/meshpulse/bin/meshpulse"]
# The configuration must hold auth.tokens: an address that others reach is refused without them (or add --insecure).
CMD ["serve", "--listen", "0.0.0.0:9090", "--data-dir", "/data", "--config", "/etc/meshpulse/meshpulse.yml"]
