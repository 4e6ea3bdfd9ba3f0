# nanoNeoX in a container, on a GPU or without one. compose.yaml has it beside an MLflow server.
#
#     docker build -t nanoneox --build-arg COMMIT=$(git rev-parse HEAD) .
#     docker run --rm -v data:/nanoneox/data nanoneox python prepare/python.py
#     docker run --rm -v data:/nanoneox/data -v out:/nanoneox/out --gpus=all --name=train nanoneox \
#         python train.py config/python_t4.py --init_from=auto
#     docker inspect --format='{{json .State.Health}}' train   # does it make progress?
#     docker stop --time=60 train      # saves; the same command goes on
#
# The build needs neither a GPU nor CUDA: torch brings its own. For a machine without a GPU, torch's
# CPU wheel is much smaller: --build-arg PIP_ARGS="--index-url=...", as PyTorch's install page
# says. `--user` may be anybody; a host's folder instead of a volume must be writable for that user.
# eval.py's sandbox needs user namespaces, which Docker forbids: --security-opt seccomp=unconfined
# --security-opt apparmor=unconfined --security-opt systempaths=unconfined allows them. (Built and
# run with podman, which calls the last one unmask=ALL; not with Docker yet.)

# To pin the base by digest, write that of the day: docker buildx imagetools inspect python:...
ARG PYTHON=3.13
FROM python:${PYTHON}-slim-trixie

# tini passes SIGTERM on from process 1; bubblewrap is eval.py's sandbox; torch.compile needs g++.
# Debian keeps only the newest versions, so pinning them would break the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap g++ tini \
    && rm -rf /var/lib/apt/lists/*

# A named volume takes its owner and mode from the folder that it covers.
RUN useradd --uid=1000 --create-home nanoneox \
    && mkdir -p /nanoneox/data /nanoneox/out /mlflow \
    && chown nanoneox /nanoneox/data /nanoneox/out /mlflow \
    && chmod 1777 /nanoneox/data /nanoneox/out /mlflow /home/nanoneox
WORKDIR /nanoneox

ARG TORCH=torch==2.13.0
ARG PIP_ARGS=
# PIP_ARGS may be several arguments.
# hadolint ignore=SC2086,DL3013
RUN pip install --no-cache-dir $PIP_ARGS "$TORCH"
COPY requirements.txt requirements-track.txt requirements-pinned.txt ./
RUN pip install --no-cache-dir -r requirements.txt -r requirements-track.txt -c requirements-pinned.txt

COPY . .
RUN python -m compileall -q .

# Libraries cache what they compile in the home folder, and torch asks for the user's name.
ARG COMMIT=
ENV NANONEOX_COMMIT=$COMMIT HOME=/home/nanoneox USER=nanoneox PYTHONUNBUFFERED=1 WANDB_DIR=/nanoneox/out
USER 1000
VOLUME ["/nanoneox/data", "/nanoneox/out"]
HEALTHCHECK --interval=60s --timeout=10s --retries=2 CMD ["python", "tools/health.py"]
ENTRYPOINT ["tini", "--"]
CMD ["python", "train.py", "--help"]
