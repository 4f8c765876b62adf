# The command without any framework:
#   docker build -t checkpoint-converter .
#   docker run --rm --user "$(id -u)" -v "$PWD:/work" checkpoint-converter batch ports.yaml
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY converter converter
COPY mappings mappings
RUN python -m venv /opt/converter \
 && /opt/converter/bin/python -m pip install --no-cache-dir --constraint constraints.txt . \
 && /opt/converter/bin/python -m pip uninstall --yes pip

FROM python:${PYTHON}-slim
COPY --from=build /opt/converter /opt/converter
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin converter
ENV PATH=/opt/converter/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001
WORKDIR /work
ENTRYPOINT ["converter"]
CMD ["--help"]
