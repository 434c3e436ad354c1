# trionat, for servers and clients alike: docs/containers.md. It runs as a user without a name, with nothing but /state to write to.
ARG DEBIAN=trixie-slim

FROM debian:${DEBIAN} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends binutils python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY src src
ARG EXTRAS=cluster,console,names
RUN python3 -m venv /opt/trionat \
    && /opt/trionat/bin/pip install --no-cache-dir ".[${EXTRAS}]" \
    && /opt/trionat/bin/pip uninstall -y pip \
    # What only compilers and debuggers read is half of it.
    && find /opt/trionat \( -name '*.c' -o -name '*.pyx' -o -name '*.pxd' \) -delete \
    && find /opt/trionat -name '*.so' -exec strip --strip-debug {} +

FROM debian:${DEBIAN}
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log \
    && install -d -o 10001 -g 10001 -m 700 /state /etc/trionat
COPY --from=build /opt/trionat /opt/trionat
ENV PATH=/opt/trionat/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    TRIONAT_STATE_DIR=/state
WORKDIR /state
USER 10001:10001
VOLUME /state
EXPOSE 8007 8008 60000-60003
# A server's; a client has nobody who could be asked: it ends when there is no more hope, and goes on trying before that.
HEALTHCHECK --interval=30s --timeout=15s --start-period=30s CMD trionat status > /dev/null || exit 1
ENTRYPOINT ["trionat"]
CMD ["serve"]
