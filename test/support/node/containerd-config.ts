import { join } from "node:path";
import { pauseImageName } from "../images/images.ts";
import type { NodeNetwork } from "./network.ts";

/** Where one test node keeps its parts. */
export interface NodePaths {
  containerdConfig: string;
  containerdRoot: string;
  containerdState: string;
  containerdSocket: string;
  cniConfigDir: string;
  cniDataDir: string;
  /** `hosts.toml` files, one folder a registry. */
  registryConfigDir: string;
  /** Logs of everything started in the node. */
  logDir: string;
}

export function pathsOf(dir: string): NodePaths {
  return {
    containerdConfig: join(dir, "containerd.toml"),
    containerdRoot: join(dir, "root"),
    containerdState: join(dir, "run"),
    containerdSocket: join(dir, "c.sock"),
    cniConfigDir: join(dir, "cni"),
    cniDataDir: join(dir, "ipam"),
    registryConfigDir: join(dir, "certs.d"),
    logDir: join(dir, "log"),
  };
}

/** Where Debian puts the CNI plugins. */
export const cniPluginDir = "/usr/lib/cni";

/** containerd 1.6's and 1.7's configuration (version 2). */
export function renderContainerdConfig(paths: NodePaths, snapshotter: "overlayfs" | "native"): string {
  const string = (value: string) => JSON.stringify(value);
  const cri = 'plugins."io.containerd.grpc.v1.cri"';
  return `version = 2
root = ${string(paths.containerdRoot)}
state = ${string(paths.containerdState)}
# Without CAP_SYS_RESOURCE nothing may lower an oom_score_adj, neither containerd's own nor a sandbox's.
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt",
  "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
  address = ${string(paths.containerdSocket)}

[${cri}]
  sandbox_image = ${string(pauseImageName)}
  restrict_oom_score_adj = true
  # Else the sandboxes' namespaces would be mounted in the host's own /run/netns.
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"

[${cri}.cni]
  bin_dir = ${string(cniPluginDir)}
  conf_dir = ${string(paths.cniConfigDir)}

[${cri}.containerd]
  snapshotter = ${string(snapshotter)}
  default_runtime_name = "runc"

[${cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[${cri}.containerd.runtimes.runc.options]
  SystemdCgroup = false

[${cri}.registry]
  config_path = ${string(paths.registryConfigDir)}
`;
}

/** The network's name is also the prefix of its files in the machine-wide CNI cache. */
export function renderCNIConfig(network: NodeNetwork, paths: NodePaths): string {
  return JSON.stringify({
    cniVersion: "0.4.0",
    name: network.netns,
    plugins: [
      {
        type: "bridge",
        bridge: "cni0",
        isGateway: true,
        isDefaultGateway: true,
        hairpinMode: true,
        ipMasq: false,
        ipam: {
          type: "host-local",
          dataDir: paths.cniDataDir,
          ranges: [[{ subnet: network.podCIDR, gateway: network.podGateway }]],
        },
      },
      { type: "portmap", capabilities: { portMappings: true } },
    ],
  });
}

/** Tells containerd to find `registry` (as in image names) at a plain-http address. */
export function renderRegistryHosts(address: string): string {
  const url = JSON.stringify(`http://${address}`);
  return `server = ${url}\n\n[host.${url}]\n  capabilities = ["pull", "resolve"]\n`;
}
