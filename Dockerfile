# The images of Carrel, one target for each deployable: gateway, execution, agent-instance, emitter, bridge, cli.
# `make images` builds them all. Every package comes from images/requirements/, which is made from constraints.txt.
#
# Build arguments:
#   PYTHON_IMAGE          base with CPython 3.11 on Debian; name a digest where builds must not change under you
#   VERSION, REVISION     for the labels
#   SOURCE_DATE_EPOCH     the time that files get, so that two builds have the same layers; 1980 by default
#   PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST, PIP_TIMEOUT
#                         for pip, where the public index is not to be used. They stay in the build's stages; no image
#                         has them. A password does not belong there, and another authority of certificates belongs
#                         into the base.
# It asks for nothing that only one builder has, so that the classic one builds it as BuildKit does.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm


# The system of all images: the base without pip, documents and caches, with an init. One layer, since nothing can be
# taken out of a base's own.
FROM ${PYTHON_IMAGE} AS system
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends tini >/dev/null \
 && rm -rf /etc/apt/sources.list.d/* /etc/apt/sources.list \
 && groupadd --gid 10001 carrel \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/carrel --no-create-home --shell /usr/sbin/nologin carrel \
 && mkdir -p /var/lib/carrel /run/carrel/keys /run/carrel/tls /run/carrel/login /run/carrel/doctor \
 && chown 10001:10001 /var/lib/carrel /run/carrel/keys && chmod 0700 /var/lib/carrel \
 && ([ -x /usr/local/bin/python3.11 ] || ln -s /usr/bin/python3.11 /usr/local/bin/python3.11)
COPY tools/assemble_image.py /build/
ARG SOURCE_DATE_EPOCH=315532800
RUN python3.11 -B /build/assemble_image.py system \
 && rm -rf /build /var/cache/ldconfig/* /etc/machine-id /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid- /etc/subgid- \
 && mkdir /image \
 && tar -C / --one-file-system --exclude=./image --exclude=./proc/* --exclude=./sys/* --exclude=./dev/* -c . | tar -C /image -x \
 && find /image -depth -exec touch -h -d "@${SOURCE_DATE_EPOCH}" {} +



# What builds: pip, and a virtual environment without it.
FROM ${PYTHON_IMAGE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_TIMEOUT
ARG SOURCE_DATE_EPOCH=315532800
# For the stages that build on this one, which do not see its arguments. pip takes an empty one as not given.
ENV PIP_INDEX_URL=${PIP_INDEX_URL} PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL} PIP_TRUSTED_HOST=${PIP_TRUSTED_HOST} \
    PIP_TIMEOUT=${PIP_TIMEOUT} SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} \
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN ([ -x /usr/local/bin/python3.11 ] || ln -s /usr/bin/python3.11 /usr/local/bin/python3.11) \
 && /usr/local/bin/python3.11 -m venv --without-pip /opt/carrel
COPY tools/assemble_image.py /build/
# add NAME: the packages of a list below /layers/NAME, as they will lie in the environment.
RUN printf '%s\n' '#!/bin/sh' 'set -e' 'prefix=/layers/$1/opt/carrel' \
      'python3 -m pip --python /opt/carrel/bin/python3.11 install --quiet --no-deps --require-hashes --only-binary :all: --no-compile --prefix "$prefix" -r "/build/$1.txt"' \
      'rm -rf "$prefix"/bin "$prefix"/share "$prefix"/include' \
      '/opt/carrel/bin/python -B /build/assemble_image.py packages "$prefix"/lib/python3.11/site-packages' \
      'find "/layers/$1" -depth -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +' > /usr/local/bin/add && chmod +x /usr/local/bin/add
COPY images/requirements/common.txt /build/
RUN add common && cp -a /opt/carrel/. /layers/common/opt/carrel/ \
 && rm -rf /layers/common/opt/carrel/bin/[Aa]ctivate* && find /layers/common -depth -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +


# Our wheel, in trees of what each image holds of it.
FROM build AS wheel
COPY images/requirements/build.txt images/deployables.toml /build/
RUN python3.11 -m venv --without-pip /hatch \
 && python3 -m pip --python /hatch/bin/python install --quiet --no-deps --require-hashes --only-binary :all: -r /build/build.txt
COPY pyproject.toml README.md LICENSE /source/
COPY protos/buf/validate/NOTICE /source/protos/buf/validate/
COPY carrel /source/carrel
COPY servicekit /source/servicekit
COPY services /source/services
COPY gateway /source/gateway
COPY examples /source/examples
# The console's client: the wheel has it among the gateway's files.
COPY clients/js/src /source/clients/js/src
COPY docs/asyncapi.json docs/openapi.json docs/proto.json /source/docs/
RUN python3 -m pip --python /hatch/bin/python wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels /source \
 && python3 -m pip --python /opt/carrel/bin/python install --quiet --no-deps --no-index --no-compile --prefix /installed /wheels/*.whl \
 && /opt/carrel/bin/python -B /build/assemble_image.py apps /build/deployables.toml /installed/lib/python3.11/site-packages /trees \
 && for tree in /trees/*; do \
      site="/apps/${tree##*/}/opt/carrel/lib/python3.11"; mkdir -p "$site" && mv "$tree" "$site/site-packages"; \
    done \
 && mkdir -p /apps/cli/opt/carrel/bin && cp /installed/bin/carrel /apps/cli/opt/carrel/bin/ \
 && mkdir -p /folders/var/lib/carrel/keys /folders/var/lib/carrel/saved \
 && for name in gateway execution agent_instance emitter bridge postgres redis operator; do mkdir -p "/folders/run/carrel/handed/$name"; done \
 && find /apps /folders -depth -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +


FROM build AS gateway-packages
COPY images/requirements/gateway.txt /build/
RUN add gateway

FROM build AS execution-packages
COPY images/requirements/execution.txt /build/
RUN add execution

FROM build AS agent-instance-packages
COPY images/requirements/agent-instance.txt /build/
RUN add agent-instance

FROM build AS emitter-packages
COPY images/requirements/emitter.txt /build/
RUN add emitter

FROM build AS bridge-packages
COPY images/requirements/bridge.txt /build/
RUN add bridge

FROM build AS cli-packages
COPY images/requirements/cli.txt /build/
RUN add cli


# What all images have. /var/lib/carrel and /tmp are the only places that are written to.
FROM scratch AS runtime
COPY --from=system /image /
COPY --from=build /layers/common /
ENV PATH=/opt/carrel/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    CARREL_STATE_DIR=/var/lib/carrel CARREL_TICKET_JWKS=/run/carrel/keys/tickets.jwks.json
WORKDIR /var/lib/carrel
USER 10001:10001
STOPSIGNAL SIGTERM
# tini hands signals on to the service and buries what nobody else does. agent_instance is the heir of its workers'
# orphans before tini is, so each of them is buried once.
ENTRYPOINT ["/usr/bin/tini", "--"]
LABEL org.opencontainers.image.licenses="Apache-2.0" org.opencontainers.image.vendor="Carrel"


FROM runtime AS gateway
COPY --from=gateway-packages /layers/gateway /
COPY --from=wheel /apps/gateway /
ENV CARREL_GATEWAY_LISTEN=0.0.0.0:8080 CARREL_GATEWAY_TICKET_KEY=/run/carrel/keys/gateway.jwk.json
EXPOSE 8080 9080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-P", "-m", "servicekit.health_check", "gateway"]
CMD ["python", "-P", "-m", "gateway"]
ARG VERSION=0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="carrel-gateway" org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" org.opencontainers.image.source="${SOURCE}"


FROM runtime AS execution
COPY --from=execution-packages /layers/execution /
COPY --from=wheel /apps/execution /
ENV CARREL_EXECUTION_LISTEN=0.0.0.0:50051 CARREL_EXECUTION_TICKET_KEY=/run/carrel/keys/execution.jwk.json
EXPOSE 50051 51051
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-P", "-m", "servicekit.health_check", "execution"]
CMD ["python", "-P", "-m", "services.execution"]
ARG VERSION=0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="carrel-execution" org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" org.opencontainers.image.source="${SOURCE}"


FROM runtime AS agent-instance
COPY --from=agent-instance-packages /layers/agent-instance /
COPY --from=wheel /apps/agent-instance /
ENV CARREL_AGENT_INSTANCE_LISTEN=0.0.0.0:50052 MPLCONFIGDIR=/tmp/matplotlib
EXPOSE 50052 51052
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-P", "-m", "servicekit.health_check", "agent_instance"]
CMD ["python", "-P", "-m", "services.agent_instance"]
ARG VERSION=0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="carrel-agent-instance" org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" org.opencontainers.image.source="${SOURCE}"


FROM runtime AS emitter
COPY --from=emitter-packages /layers/emitter /
COPY --from=wheel /apps/emitter /
ENV CARREL_EMITTER_LISTEN=0.0.0.0:50053
EXPOSE 50053 51053
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-P", "-m", "servicekit.health_check", "emitter"]
CMD ["python", "-P", "-m", "services.emitter"]
ARG VERSION=0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="carrel-emitter" org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" org.opencontainers.image.source="${SOURCE}"


FROM runtime AS bridge
COPY --from=bridge-packages /layers/bridge /
COPY --from=wheel /apps/bridge /
ENV CARREL_BRIDGE_LISTEN=0.0.0.0:50054
EXPOSE 50054 51054
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-P", "-m", "servicekit.health_check", "bridge"]
CMD ["python", "-P", "-m", "services.bridge"]
ARG VERSION=0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="carrel-bridge" org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" org.opencontainers.image.source="${SOURCE}"


# Commands: `carrel migrate`, `carrel doctor`, `carrel run` … It serves nothing, so it has no health to ask for.
FROM runtime AS cli
COPY --from=cli-packages /layers/cli /
COPY --from=wheel /apps/cli /
# New volumes get the owner of what they are mounted on: where `carrel keys init` writes, that is the user below.
COPY --from=wheel --chown=10001:10001 /folders /
ENV CARREL_GATEWAY_TICKET_KEY=/run/carrel/keys/gateway.jwk.json
HEALTHCHECK NONE
CMD ["carrel", "--help"]
ARG VERSION=0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="carrel-cli" org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" org.opencontainers.image.source="${SOURCE}"
