# Redis and PostgreSQL as the public images have them, where only stand-ins without their conventions can be had: the
# data folder is the server's own, and PostgreSQL takes its password from a file. The real ones pass through unchanged.
ARG BASE
FROM ${BASE}
USER root
RUN if ! command -v docker-entrypoint.sh >/dev/null; then \
      mkdir -p /data /var/lib/postgresql/data; \
      if id redis >/dev/null 2>&1; then chown redis /data; fi; \
      if id postgres >/dev/null 2>&1; then \
        chown postgres /var/lib/postgresql/data && chmod 0700 /var/lib/postgresql/data \
          && chmod 3777 /var/run/postgresql; \
        mv /usr/local/bin/entrypoint.sh /usr/local/bin/stand-in.sh; \
        printf '%s\n' '#!/bin/sh' \
          '[ -z "$POSTGRES_PASSWORD_FILE" ] || export POSTGRES_PASSWORD="$(cat "$POSTGRES_PASSWORD_FILE")"' \
          'exec /usr/local/bin/stand-in.sh "$@"' > /usr/local/bin/entrypoint.sh && chmod +x /usr/local/bin/entrypoint.sh; \
      fi; \
    fi
