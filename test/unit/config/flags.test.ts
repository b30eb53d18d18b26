import { expect, test } from "vitest";
import { parseFlags } from "../../../agent/config/flags.ts";
import { kubeletCommandFlags } from "../../../agent/config/load-kubelet.ts";
import { proxyCommandFlags } from "../../../agent/config/load-proxy.ts";
import { problemsOf } from "./support.ts";

function valuesOf(...args: string[]): Record<string, unknown> {
  return Object.fromEntries([...parseFlags(args, kubeletCommandFlags).given].map(([{ flag }, value]) => [flag, value]));
}

const accepted: { args: string[]; want: Record<string, unknown> }[] = [
  { args: ["--kubeconfig", "/a"], want: { kubeconfig: "/a" } },
  { args: ["--kubeconfig=/a"], want: { kubeconfig: "/a" } },
  { args: ["--root-dir=/a=b"], want: { "root-dir": "/a=b" } },
  { args: ["--hostname-override="], want: { "hostname-override": "" } },
  { args: ["--max_pods=7"], want: { "max-pods": 7 } },
  { args: ["--max-pods=1", "--max-pods", "2"], want: { "max-pods": 2 } },
  { args: ["--max-pods=0x10"], want: { "max-pods": 16 } },
  { args: ["--oom-score-adj", "-5"], want: { "oom-score-adj": -5 } },
  { args: ["--register-node"], want: { "register-node": true } },
  { args: ["--register-node=false"], want: { "register-node": false } },
  { args: ["--register-node=F", "--v", "3"], want: { "register-node": false, v: 3 } },
  { args: ["-v=5"], want: { v: 5 } },
  { args: ["-v5"], want: { v: 5 } },
  { args: ["-v", "5"], want: { v: 5 } },
  { args: ["--vmodule=pod*=4,node=2"], want: { vmodule: [pattern("pod*", 4), pattern("node", 2)] } },
  { args: ["--sync-frequency=1m30s"], want: { "sync-frequency": 90_000 } },
  { args: ["--cluster-dns=10.0.0.10,fd00::a"], want: { "cluster-dns": ["10.0.0.10", "fd00::a"] } },
  { args: ["--cluster-dns=10.0.0.10", "--cluster-dns=10.0.0.11"], want: { "cluster-dns": ["10.0.0.10", "10.0.0.11"] } },
  { args: ["--node-labels=a=b,example.com/c="], want: { "node-labels": { a: "b", "example.com/c": "" } } },
  { args: ["--node-labels=a=b", "--node-labels=c=d"], want: { "node-labels": { a: "b", c: "d" } } },
  { args: ["--node-ip=10.0.0.1,fd00::1"], want: { "node-ip": ["10.0.0.1", "fd00::1"] } },
  { args: ["--feature-gates=A=true,B=false"], want: { "feature-gates": { A: true, B: false } } },
  {
    args: ["--eviction-hard=memory.available<1Gi,nodefs.available<10%"],
    want: { "eviction-hard": { "memory.available": "1Gi", "nodefs.available": "10%" } },
  },
  {
    args: ["--eviction-soft-grace-period=memory.available=1m30s"],
    want: { "eviction-soft-grace-period": { "memory.available": 90_000 } },
  },
  {
    args: ["--eviction-minimum-reclaim=imagefs.available=2Gi"],
    want: { "eviction-minimum-reclaim": { "imagefs.available": "2Gi" } },
  },
  { args: ["--system-reserved=cpu=500m,memory=1Gi"], want: { "system-reserved": { cpu: "500m", memory: "1Gi" } } },
  {
    args: ["--register-with-taints=a=b:NoSchedule,example.com/c:NoExecute"],
    want: {
      "register-with-taints": [
        { key: "a", value: "b", effect: "NoSchedule" },
        { key: "example.com/c", value: "", effect: "NoExecute" },
      ],
    },
  },
  {
    args: ["--reserved-memory=0:memory=1Gi,hugepages-2Mi=4Mi;1:memory=2Gi"],
    want: {
      "reserved-memory": [
        { numaNode: 0, limits: { memory: "1Gi", "hugepages-2Mi": "4Mi" } },
        { numaNode: 1, limits: { memory: "2Gi" } },
      ],
    },
  },
  {
    args: ["--manifest-url-header=A:1", "--manifest-url-header=A:2,B:x:y"],
    want: { "manifest-url-header": { A: ["1", "2"], B: ["x:y"] } },
  },
  { args: ["--storage-driver-db=x", "--containerd", "/c"], want: { "storage-driver-db": "x", containerd: "/c" } },
];
for (const { args, want } of accepted) {
  test(`accepts ${args.join(" ")}`, () => expect(valuesOf(...args)).toEqual(want));
}

function pattern(filePattern: string, verbosity: number) {
  return { filePattern, verbosity };
}

const refused: [args: string[], ...lines: string[]][] = [
  [["--kubeconfg=/a"], 'unknown flag --kubeconfg (did you mean "--kubeconfig"?)'],
  [["--frobnicate"], "unknown flag --frobnicate"],
  [["-x"], "unknown flag -x"],
  [["serve"], 'unknown command "serve"'],
  [["--register-node", "false"], 'unknown command "false"'],
  [["--"], "unknown flag --"],
  [["--kubeconfig"], "--kubeconfig: needs a value (string)"],
  [["--max-pods"], "--max-pods: needs a value (int)"],
  [["--max-pods=many"], '--max-pods: must be a whole number, not "many"'],
  [["--max-pods="], '--max-pods: must be a whole number, not ""'],
  [["--max-pods=-1"], '--max-pods: must be 0 or more, not "-1"'],
  [["--register-node=yes"], '--register-node: must be true or false, not "yes"'],
  [["--sync-frequency=60"], '--sync-frequency: must be a duration such as "1m30s", not "60"'],
  [["--cluster-dns=dns"], '--cluster-dns: must be an IP address, not "dns"'],
  [["--cgroup-driver=runc"], '--cgroup-driver: must be one of cgroupfs, systemd, not "runc"'],
  [["--node-labels=a"], '--node-labels: must be pairs such as name=value, not "a"'],
  [["--feature-gates=A=maybe"], '--feature-gates.A: must be true or false, not "maybe"'],
  [
    ["--eviction-hard=memory.available=1Gi"],
    '--eviction-hard: must be pairs such as name<value, not "memory.available=1Gi"',
  ],
  [
    ["--eviction-hard=memory<1Gi"],
    "--eviction-hard.memory: is not known; allowed are memory.available, nodefs.available, nodefs.inodesFree, " +
      "imagefs.available, imagefs.inodesFree, containerfs.available, containerfs.inodesFree, pid.available",
  ],
  [
    ["--eviction-hard=memory.available<lots"],
    '--eviction-hard.memory.available: must be like "100Mi" or "10%", not "lots"',
  ],
  [["--system-reserved=gpu=1"], "--system-reserved.gpu: is not known; allowed are cpu, memory, ephemeral-storage, pid"],
  [["--register-with-taints=a"], '--register-with-taints: must be taints such as key=value:NoSchedule, not "a"'],
  [
    ["--register-with-taints=a:Never"],
    '--register-with-taints.effect: must be one of NoSchedule, PreferNoSchedule, NoExecute, not "Never"',
  ],
  [["--version=loud"], '--version: must be true, false or raw, not "loud"'],
  [
    ["--max-pods=x", "--port=99999"],
    '--max-pods: must be a whole number, not "x"',
    '--port: must be from 1 to 65535, not "99999"',
  ],
];
for (const [args, ...lines] of refused) {
  test(`refuses ${args.join(" ")}`, () => expect(problemsOf(() => valuesOf(...args))).toEqual(lines));
}

test("a flag that may hold a secret is not repeated in messages", () => {
  const lines = problemsOf(() => valuesOf("--manifest-url-header=hunter2"));
  expect(lines).toEqual(["--manifest-url-header: must be pairs such as name:value (its value is not shown)"]);
});

// The reference's flags, so that none gets lost and none is called differently.
const kubeletFlagNames = `
  config config-dir kubeconfig bootstrap-kubeconfig hostname-override node-ip cert-dir root-dir cloud-provider node-labels
  runtime-cgroups seccomp-default lock-file exit-on-lock-contention image-credential-provider-config
  image-credential-provider-bin-dir minimum-container-ttl-duration maximum-dead-containers-per-container
  maximum-dead-containers experimental-mounter-path experimental-allocatable-ignore-eviction housekeeping-interval
  max-housekeeping-interval application-metrics-count-limit boot-id-file container-hints containerd containerd-namespace
  enable-load-reader event-storage-age-limit event-storage-event-limit global-housekeeping-interval log-cadvisor-usage
  machine-id-file storage-driver-buffer-duration storage-driver-db storage-driver-host storage-driver-password
  storage-driver-secure storage-driver-table storage-driver-user
  enable-server fail-swap-on sync-frequency file-check-frequency http-check-frequency address port read-only-port
  container-runtime-endpoint image-service-endpoint tls-cert-file tls-private-key-file tls-cipher-suites tls-min-version
  rotate-certificates registry-burst event-burst enable-debugging-handlers healthz-port healthz-bind-address oom-score-adj
  cluster-domain volume-plugin-dir cluster-dns streaming-connection-idle-timeout node-status-update-frequency
  volume-stats-agg-period feature-gates kubelet-cgroups system-cgroups provider-id cgroups-per-qos cgroup-driver cgroup-root
  cpu-manager-policy cpu-manager-policy-options cpu-manager-reconcile-period qos-reserved topology-manager-policy
  topology-manager-scope topology-manager-policy-options memory-manager-policy reserved-memory runtime-request-timeout
  hairpin-mode max-pods pod-cidr resolv-conf runonce cpu-cfs-quota cpu-cfs-quota-period enable-controller-attach-detach
  container-log-max-size container-log-max-files allowed-unsafe-sysctls node-status-max-images kernel-memcg-notification
  local-storage-capacity-isolation max-open-files kube-api-qps kube-api-burst serialize-image-pulls eviction-hard
  eviction-soft eviction-soft-grace-period eviction-pressure-transition-period eviction-max-pod-grace-period
  eviction-minimum-reclaim pods-per-core protect-kernel-defaults system-reserved kube-reserved system-reserved-cgroup
  kube-reserved-cgroup enforce-node-allocatable register-node register-with-taints fail-cgroupv1
  pod-manifest-path manifest-url manifest-url-header pod-max-pids anonymous-auth client-ca-file authentication-token-webhook
  authentication-token-webhook-cache-ttl authorization-mode authorization-webhook-cache-authorized-ttl
  authorization-webhook-cache-unauthorized-ttl rotate-server-certificates registry-qps event-qps contention-profiling
  minimum-image-ttl-duration image-gc-high-threshold image-gc-low-threshold make-iptables-util-chains kube-api-content-type
  reserved-cpus logging-format v vmodule log-flush-frequency log-text-split-stream log-text-info-buffer-size
  log-json-split-stream log-json-info-buffer-size`;

const proxyFlagNames = `
  config write-config-to cleanup init-only master hostname-override logging-format v vmodule log-flush-frequency
  log-text-split-stream log-text-info-buffer-size log-json-split-stream log-json-info-buffer-size kubeconfig
  kube-api-content-type kube-api-qps kube-api-burst feature-gates profiling show-hidden-metrics-for-version
  config-sync-period oom-score-adj bind-address healthz-bind-address metrics-bind-address bind-address-hard-fail
  healthz-port metrics-port proxy-mode iptables-masquerade-bit iptables-localhost-nodeports iptables-sync-period
  iptables-min-sync-period ipvs-sync-period ipvs-min-sync-period ipvs-scheduler ipvs-exclude-cidrs ipvs-strict-arp
  ipvs-tcp-timeout ipvs-tcpfin-timeout ipvs-udp-timeout masquerade-all detect-local-mode pod-bridge-interface
  pod-interface-name-prefix cluster-cidr nodeport-addresses conntrack-max-per-core conntrack-min
  conntrack-tcp-timeout-established conntrack-tcp-timeout-close-wait conntrack-tcp-be-liberal conntrack-udp-timeout
  conntrack-udp-timeout-stream`;

test("the kubelet's flags are the reference's, and those of what it does itself: services, and networks with Docker", () => {
  const own = "proxy-config pod-infra-container-image cni-conf-dir cni-bin-dir cni-cache-dir cni-default-network";
  expect([...kubeletCommandFlags.keys()].sort()).toEqual([...words(kubeletFlagNames), ...words(own)].sort());
});

test("the proxy's flags are the reference's", () => {
  expect([...proxyCommandFlags.keys()].sort()).toEqual(words(proxyFlagNames).sort());
});

function words(text: string): string[] {
  return text.trim().split(/\s+/);
}
