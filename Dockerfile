# The two commands of the README in a container. Not built where this was written (no container engine there): say so if it fails.
#   docker build -t udaseg . && docker run --rm -v "$PWD/out:/out" udaseg
# Without CUDA: --build-arg CPU=1 --build-arg TORCH_INDEX=<address of PyTorch's CPU packages> (docs/install.md).
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /udaseg
COPY . .
ARG CPU=
ARG TORCH_INDEX=
RUN make install CPU="$CPU" TORCH_INDEX="$TORCH_INDEX"
CMD make demo CPU="" && mkdir -p /out && cp -r demo/results demo/figures /out/
