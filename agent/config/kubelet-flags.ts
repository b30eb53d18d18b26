import { bool, duration, int, list, map, oneOf, string } from "./kinds.ts";
import { later, noEffect, type ValuesOf, works } from "./schema.ts";

const text = string();
const second = 1000;

/** Where nodelet starts to look and what it is called: flags without a field in KubeletConfiguration. */
export const kubeletFlagFields = {
  config: works(text, "", "KubeletConfiguration file"),
  configDir: works(text, "", "directory of *.conf files merged into it"),
  proxyConfig: works(text, "", "KubeProxyConfiguration file: run the service proxy too"),
  kubeconfig: works(text, "", "access to the API server; none: run alone"),
  bootstrapKubeconfig: works(text, "", "access for requesting the first certificate"),
  hostnameOverride: works(text, "", "name of the node, instead of the host's"),
  nodeIP: works(list(text), [], "the node's address, or one of each family"),
  nodeLabels: works(map(text), {}, "labels of the Node"),
  rootDir: works(text, "/var/lib/kubelet", "directory of the agent's state"),
  certDir: works(text, "/var/lib/kubelet/pki", "directory of certificates"),
  cloudProvider: works(oneOf("", "external"), "", "external: a cloud controller manager sets up the Node"),
  seccompDefault: works(bool, false, "like the field seccompDefault; either one counts"),
  runtimeCgroups: works(text, "", "cgroup of the container runtime"),
  podInfraContainerImage: works(text, "registry.k8s.io/pause:3.10", "with Docker: image of the pods' pause containers"),
  cniConfDir: works(text, "/etc/cni/net.d", "where the network of pods is described"),
  cniBinDir: works(list(text), ["/opt/cni/bin", "/usr/lib/cni"], "with Docker: directories of CNI plugins"),
  cniCacheDir: works(text, "/var/lib/cni/cache", "with Docker: what plugins gave pods, for their removal"),
  cniDefaultNetwork: works(bool, false, "describe a bridge network for the node's podCIDRs if there is none"),
  lockFile: later(text, "", "file to hold a lock on while running"),
  exitOnLockContention: later(bool, false, "leave when another wants that lock"),
  imageCredentialProviderConfig: works(text, "", "file or directory that configures credential providers"),
  imageCredentialProviderBinDir: works(text, "", "directory of credential providers"),
  minimumContainerTTLDuration: works(duration(), 0, "dead containers younger than this stay", {
    flag: "minimum-container-ttl-duration",
  }),
  maximumDeadContainersPerContainer: works(int(), 1, "dead containers kept per container, negative for all"),
  maximumDeadContainers: works(int(), -1, "dead containers kept on the node, negative for no limit"),
  experimentalMounterPath: noEffect(text, "", "deprecated"),
  experimentalAllocatableIgnoreEviction: works(bool, false, "evictionHard does not lower allocatable"),
  housekeepingInterval: later(duration(), 10 * second, "how often container stats are read"),
  maxHousekeepingInterval: later(duration(), 15 * second, "longest time between two such reads"),
};

/** Flags of the reference's metrics library. They never had an effect on what nodelet does. */
export const cadvisorFlagFields = {
  applicationMetricsCountLimit: noEffect(int(), 100, "no effect"),
  bootIDFile: noEffect(text, "/proc/sys/kernel/random/boot_id", "no effect"),
  containerHints: noEffect(text, "/etc/cadvisor/container_hints.json", "no effect"),
  containerd: noEffect(text, "/run/containerd/containerd.sock", "no effect"),
  containerdNamespace: noEffect(text, "k8s.io", "no effect"),
  enableLoadReader: noEffect(bool, false, "no effect"),
  eventStorageAgeLimit: noEffect(text, "default=0", "no effect"),
  eventStorageEventLimit: noEffect(text, "default=0", "no effect"),
  globalHousekeepingInterval: noEffect(duration(), 60 * second, "no effect"),
  logCadvisorUsage: noEffect(bool, false, "no effect"),
  machineIDFile: noEffect(text, "/etc/machine-id,/var/lib/dbus/machine-id", "no effect"),
  storageDriverBufferDuration: noEffect(duration(), 60 * second, "no effect"),
  storageDriverDB: noEffect(text, "cadvisor", "no effect"),
  storageDriverHost: noEffect(text, "localhost:8086", "no effect"),
  storageDriverPassword: noEffect(text, "root", "no effect", { secret: true }),
  storageDriverSecure: noEffect(bool, false, "no effect"),
  storageDriverTable: noEffect(text, "stats", "no effect"),
  storageDriverUser: noEffect(text, "root", "no effect"),
};

/** Values of the flags that have no field in KubeletConfiguration. Durations are milliseconds. */
export type KubeletFlags = Readonly<ValuesOf<typeof kubeletFlagFields>>;

// A key in these namespaces means something to Kubernetes; a node may only claim the listed ones for itself.
const kubernetesLabels = new Set([
  "kubernetes.io/hostname",
  "kubernetes.io/os",
  "kubernetes.io/arch",
  "beta.kubernetes.io/os",
  "beta.kubernetes.io/arch",
  "beta.kubernetes.io/instance-type",
  "node.kubernetes.io/instance-type",
  "topology.kubernetes.io/zone",
  "topology.kubernetes.io/region",
  "failure-domain.beta.kubernetes.io/zone",
  "failure-domain.beta.kubernetes.io/region",
]);
const nodeLabelNamespaces = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/** True if `--node-labels` may set `key`: not in kubernetes.io or k8s.io, or one of those meant for nodes. */
export function isAllowedNodeLabel(key: string): boolean {
  const namespace = key.includes("/") ? key.slice(0, key.indexOf("/")) : "";
  const isIn = (domain: string) => namespace === domain || namespace.endsWith(`.${domain}`);
  if (!isIn("kubernetes.io") && !isIn("k8s.io")) return true;
  return kubernetesLabels.has(key) || nodeLabelNamespaces.some(isIn);
}
