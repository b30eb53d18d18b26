# nodelet as an image, for nodes whose agent runs in a container. The agent manages the host's pods, mounts, cgroups and
# packet filter, so the container is privileged, shares the host's namespaces, and sees its directories in their places:
#
#   docker build -t nodelet .
#   docker run -d --name nodelet --restart=always --privileged \
#     --network=host --pid=host --ipc=host --uts=host --cgroupns=host \
#     -v /run:/run -v /sys:/sys -v /dev:/dev -v /lib/modules:/lib/modules:ro \
#     -v /etc/kubernetes:/etc/kubernetes -v /etc/cni:/etc/cni -v /opt/cni:/opt/cni \
#     -v /etc/machine-id:/etc/machine-id:ro -v /etc/os-release:/etc/os-release:ro \
#     -v /var/lib/kubelet:/var/lib/kubelet:rshared -v /var/lib/cni:/var/lib/cni \
#     -v /var/log/pods:/var/log/pods -v /var/log/containers:/var/log/containers \
#     nodelet --config=/var/lib/kubelet/config.yaml --kubeconfig=/etc/kubernetes/kubelet.conf
#
# With Docker as the pods' runtime also -v /var/lib/docker:/var/lib/docker: logs and the pods' resolv.conf lie there.
# rshared: what the agent mounts below /var/lib/kubelet must appear on the host, where the containers are started.

FROM node:24-bookworm-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY package.json package-lock.json tsconfig.json ./
COPY .ci .ci
RUN npm ci --no-audit --no-fund
COPY proto proto
COPY cni cni
COPY agent agent
RUN npm run build

FROM debian:bookworm-slim
RUN apt-get update \
  && apt-get install -y --no-install-recommends \
    ca-certificates conntrack iproute2 ipset iptables kmod mount nftables util-linux \
  && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/dist/nodelet /usr/local/bin/nodelet
COPY --from=build /src/dist/nodelet.LICENSES.txt /usr/share/doc/nodelet/
COPY LICENSE /usr/share/doc/nodelet/
ENTRYPOINT ["/usr/local/bin/nodelet"]
