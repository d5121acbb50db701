# syntax=docker/dockerfile:1
# Three results: the image (default), the single files (--target bundle), and the build stage.

FROM python:3.13-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY requirements/ requirements/
RUN python -m venv /build \
    && /build/bin/python -m pip install --quiet --require-hashes \
         -r requirements/bootstrap.txt -r requirements/build.txt \
    && python -m venv --without-pip /opt/tokenhub \
    && /build/bin/uv pip install --python /opt/tokenhub/bin/python --compile-bytecode \
         --require-hashes -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY src/ src/
RUN /build/bin/python -m hatchling build --target wheel --directory /wheel \
    && /build/bin/uv pip install --python /opt/tokenhub/bin/python --compile-bytecode \
         --no-deps /wheel/*.whl

FROM build AS bundler
ARG BUILD_PYTHONS="3.11 3.12 3.13"
COPY tools/ tools/
RUN /build/bin/python tools/bundle.py --uv /build/bin/uv --wheel /wheel \
      --lock requirements/runtime.txt --pythons "$BUILD_PYTHONS" --out /bundle

FROM scratch AS bundle
COPY --from=bundler /bundle/ /

FROM python:3.13-slim-bookworm AS image
RUN groupadd --gid 10001 tokenhub \
    && useradd --uid 10001 --gid tokenhub --create-home --shell /usr/sbin/nologin tokenhub \
    && install -d -m 0700 -o tokenhub -g tokenhub /data
COPY --from=build /opt/tokenhub /opt/tokenhub
ENV PATH=/opt/tokenhub/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    TOKENHUB_LISTEN_ADDR=0.0.0.0:8080 \
    TOKENHUB_DATA_DIR=/data
USER tokenhub
WORKDIR /home/tokenhub
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s --retries=3 CMD ["tokenhub", "--healthcheck"]
ENTRYPOINT ["tokenhub"]
