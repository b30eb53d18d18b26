import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import type { Container, PodSpec } from "../../../agent/kube/types.ts";
import type { DNSConfig } from "../../../agent/pods/dns.ts";
import type { PodSettings } from "../../../agent/pods/port.ts";
import { buildSandboxConfig } from "../../../agent/pods/sandbox.ts";
import {
  containerSecurityContext,
  readMaskedPaths,
  sandboxNamespaces,
  sandboxSecurityContext,
} from "../../../agent/pods/security.ts";
import type { ImageInfo, PodSandboxConfig } from "../../../agent/runtime/port.ts";
import { makeTempDir } from "../volumes/support.ts";
import { podOf } from "./support.ts";

const maskedPaths = ["/proc/kcore"];
const imageOf = (user: Partial<ImageInfo>): ImageInfo => ({ username: "", ...user }) as ImageInfo;

interface Inputs {
  own?: Container["securityContext"];
  pod?: Partial<PodSpec>;
  annotations?: Record<string, string>;
  image?: ImageInfo;
  seccompDefault?: boolean;
}

function contextOf({ own, pod = {}, annotations = {}, image, seccompDefault = false }: Inputs) {
  const container: Container = { name: "app", ...(own === undefined ? {} : { securityContext: own }) };
  const made = podOf({ containers: [container], ...pod }, { annotations });
  const options = { rootDir: "/var/lib/kubelet", seccompDefault, maskedPaths, volumeGroups: [30] };
  return containerSecurityContext(made, container, image, sandboxNamespaces(made), options);
}

describe("a container's security context", () => {
  const rows: { name: string; inputs: Inputs; want: object }[] = [
    {
      name: "says nothing where the pod says nothing",
      inputs: {},
      want: {
        privileged: false,
        capabilities: { add: [], drop: [] },
        readonlyRootfs: false,
        noNewPrivs: false,
        supplementalGroups: [30],
        supplementalGroupsPolicy: "Merge",
        selinux: undefined,
        apparmor: undefined,
        seccomp: { type: "Unconfined", localhostRef: "" },
        maskedPaths,
        readonlyPaths: ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
      },
    },
    {
      name: "counts more than the pod's",
      inputs: {
        own: { runAsUser: 1, runAsGroup: 2, seLinuxOptions: { level: "s0" }, seccompProfile: { type: "Unconfined" } },
        pod: {
          securityContext: {
            runAsUser: 3,
            runAsGroup: 4,
            seLinuxOptions: { level: "s1" },
            seccompProfile: { type: "RuntimeDefault" },
          },
        },
      },
      want: { runAsUser: 1, runAsGroup: 2, selinux: { level: "s0" }, seccomp: { type: "Unconfined" } },
    },
    {
      name: "has what only the pod says",
      inputs: {
        pod: {
          securityContext: {
            runAsUser: 3,
            runAsGroup: 4,
            fsGroup: 10,
            supplementalGroups: [20, 10],
            supplementalGroupsPolicy: "Strict",
            seccompProfile: { type: "RuntimeDefault" },
          },
        },
      },
      want: {
        runAsUser: 3,
        runAsGroup: 4,
        supplementalGroups: [10, 20, 30],
        supplementalGroupsPolicy: "Strict",
        seccomp: { type: "RuntimeDefault", localhostRef: "" },
      },
    },
    {
      name: "passes on capabilities as they are written",
      inputs: { own: { capabilities: { add: ["NET_ADMIN"], drop: ["ALL"] }, readOnlyRootFilesystem: true } },
      want: { capabilities: { add: ["NET_ADMIN"], drop: ["ALL"] }, readonlyRootfs: true },
    },
    {
      name: "keeps new privileges away",
      inputs: { own: { allowPrivilegeEscalation: false } },
      want: { noNewPrivs: true },
    },
    { name: "lets them come", inputs: { own: { allowPrivilegeEscalation: true } }, want: { noNewPrivs: false } },
    {
      name: "unmasks /proc where that is asked for",
      inputs: { own: { procMount: "Unmasked" } },
      want: { maskedPaths: [], readonlyPaths: [] },
    },
    {
      name: "hides nothing from the privileged",
      inputs: { own: { privileged: true } },
      want: { privileged: true, maskedPaths: [], readonlyPaths: [] },
    },
    { name: "runs as the image's user ID", inputs: { image: imageOf({ uid: 7 }) }, want: { runAsUser: 7 } },
    {
      name: "runs as the image's user name",
      inputs: { image: imageOf({ username: "www" }) },
      want: { runAsUser: undefined, runAsUsername: "www" },
    },
    { name: "runs as root if the image names nobody", inputs: { image: imageOf({}) }, want: { runAsUser: 0 } },
    {
      name: "runs as its own user, whoever the image's is",
      inputs: { own: { runAsUser: 5 }, image: imageOf({ username: "www" }) },
      want: { runAsUser: 5, runAsUsername: undefined },
    },
    {
      name: "has the runtime's seccomp profile by the node's default",
      inputs: { seccompDefault: true },
      want: { seccomp: { type: "RuntimeDefault", localhostRef: "" } },
    },
    {
      name: "finds a seccomp profile in the node's folder",
      inputs: { own: { seccompProfile: { type: "Localhost", localhostProfile: "a/b.json" } } },
      want: { seccomp: { type: "Localhost", localhostRef: "/var/lib/kubelet/seccomp/a/b.json" } },
    },
    {
      name: "has its own AppArmor profile before that of an annotation",
      inputs: {
        own: { appArmorProfile: { type: "Localhost", localhostProfile: "mine" } },
        annotations: { "container.apparmor.security.beta.kubernetes.io/app": "unconfined" },
      },
      want: { apparmor: { type: "Localhost", localhostRef: "mine" } },
    },
    {
      name: "has that of an annotation before the pod's",
      inputs: {
        annotations: { "container.apparmor.security.beta.kubernetes.io/app": "localhost/theirs" },
        pod: { securityContext: { appArmorProfile: { type: "Unconfined" } } },
      },
      want: { apparmor: { type: "Localhost", localhostRef: "theirs" } },
    },
    {
      name: "has the pod's AppArmor profile",
      inputs: { pod: { securityContext: { appArmorProfile: { type: "RuntimeDefault" } } } },
      want: { apparmor: { type: "RuntimeDefault", localhostRef: "" } },
    },
    {
      name: "may be anybody but root",
      inputs: { own: { runAsNonRoot: true }, image: imageOf({ uid: 9 }) },
      want: { runAsUser: 9 },
    },
    {
      name: "may be root although its pod says otherwise",
      inputs: { own: { runAsNonRoot: false }, pod: { securityContext: { runAsNonRoot: true, runAsUser: 0 } } },
      want: { runAsUser: 0 },
    },
  ];
  test.each(rows)("$name", ({ inputs, want }) => expect(contextOf(inputs)).toMatchObject(want));

  const refused: { name: string; inputs: Inputs; why: string }[] = [
    {
      name: "root by number",
      inputs: { own: { runAsNonRoot: true, runAsUser: 0 } },
      why: "runAsUser breaks non-root policy",
    },
    {
      name: "root by the image",
      inputs: { pod: { securityContext: { runAsNonRoot: true } }, image: imageOf({}) },
      why: "container has runAsNonRoot and image will run as root",
    },
    {
      name: "a name that may be root's",
      inputs: { own: { runAsNonRoot: true }, image: imageOf({ username: "www" }) },
      why: "container has runAsNonRoot and image has non-numeric user (www)",
    },
    {
      name: "a seccomp profile outside the folder",
      inputs: { own: { seccompProfile: { type: "Localhost", localhostProfile: "../x" } } },
      why: "must be a path inside the seccomp folder",
    },
    {
      name: "a seccomp profile without a name",
      inputs: { own: { seccompProfile: { type: "Localhost" } } },
      why: "must be a path inside the seccomp folder",
    },
    {
      name: "an AppArmor annotation that makes no sense",
      inputs: { annotations: { "container.apparmor.security.beta.kubernetes.io/app": "nonsense" } },
      why: 'AppArmor annotation "nonsense" must be',
    },
  ];
  test.each(refused)("refuses $name", ({ inputs, why }) => expect(() => contextOf(inputs)).toThrow(why));
});

describe("namespaces of a pod", () => {
  const rows: { spec: Partial<PodSpec>; want: object }[] = [
    { spec: {}, want: { network: "POD", pid: "CONTAINER", ipc: "POD" } },
    { spec: { hostNetwork: true }, want: { network: "NODE", pid: "CONTAINER", ipc: "POD" } },
    { spec: { hostPID: true, shareProcessNamespace: true }, want: { network: "POD", pid: "NODE", ipc: "POD" } },
    { spec: { shareProcessNamespace: true }, want: { network: "POD", pid: "POD", ipc: "POD" } },
    { spec: { hostIPC: true }, want: { network: "POD", pid: "CONTAINER", ipc: "NODE" } },
  ];
  test.each(rows)("$spec", ({ spec, want }) => expect(sandboxNamespaces(podOf(spec))).toMatchObject(want));
});

test("a sandbox is privileged if any container is, and has the runtime's seccomp profile", () => {
  const privileged = { securityContext: { privileged: true } };
  const inits = [{ name: "init", ...privileged }];
  for (const [spec, want] of [
    [{}, false],
    [{ containers: [{ name: "app", ...privileged }] }, true],
    [{ initContainers: inits }, true],
    [{ ephemeralContainers: inits }, true],
  ] as const) {
    const context = sandboxSecurityContext(podOf(spec as Partial<PodSpec>), []);
    expect(context).toMatchObject({ privileged: want, seccomp: { type: "RuntimeDefault" }, readonlyRootfs: false });
  }
});

describe("a sandbox", () => {
  const settings = {
    podLogsDir: "/var/log/pods",
    clusterDomain: "cluster.local",
    resources: { hugePageSizes: [], memoryCapacityBytes: 1 << 30, cgroupVersion: 2 },
  } as unknown as PodSettings;
  const dns: DNSConfig = { servers: ["10.96.0.10"], searches: [], options: [] };
  const configOf = (spec: Partial<PodSpec>, metadata = {}): PodSandboxConfig =>
    buildSandboxConfig(podOf(spec, metadata), 3, { cgroupParent: "/kubepods/podu1", dns, volumeGroups: [], settings });

  test("is named and labelled after its pod", () => {
    expect(configOf({}, { labels: { app: "web" }, annotations: { note: "x" } })).toMatchObject({
      name: "web",
      namespace: "ns",
      uid: "u1",
      attempt: 3,
      hostname: "web",
      logDirectory: "/var/log/pods/ns_web_u1",
      dns,
      cgroupParent: "/kubepods/podu1",
      labels: {
        app: "web",
        "io.kubernetes.pod.name": "web",
        "io.kubernetes.pod.namespace": "ns",
        "io.kubernetes.pod.uid": "u1",
      },
      annotations: { note: "x", "kubernetes.io/config.source": "api" },
    });
  });

  test("has ports of regular containers alone, each once, and such without a host port", () => {
    const ports = [
      { name: "web", containerPort: 80, hostPort: 8080, hostIP: "127.0.0.1" },
      { name: "web", containerPort: 81 },
      { containerPort: 53, protocol: "UDP" as const },
      { containerPort: 53, protocol: "UDP" as const },
    ];
    const { portMappings } = configOf({
      initContainers: [{ name: "side", restartPolicy: "Always", ports: [{ containerPort: 99 }] }],
      containers: [{ name: "app", ports }],
    });
    expect(portMappings).toEqual([
      { protocol: "TCP", containerPort: 80, hostPort: 8080, hostIP: "127.0.0.1" },
      { protocol: "UDP", containerPort: 53, hostPort: 0, hostIP: "" },
    ]);
  });

  test("has sysctls with dots between their parts, whichever way they are written", () => {
    const names = ["kernel.shm_rmid_forced", "net/ipv4/tcp_syncookies", "net/ipv4/conf/eth0.7/forwarding"];
    const sysctls = names.map((name) => ({ name, value: "1" }));
    expect(Object.keys(configOf({ securityContext: { sysctls } }).sysctls)).toEqual([
      "kernel.shm_rmid_forced",
      "net.ipv4.tcp_syncookies",
      "net.ipv4.conf.eth0/7.forwarding",
    ]);
  });
});

test("of the throttle counters only those that the machine has are hidden", async () => {
  const { dir, cleanUp } = await makeTempDir();
  try {
    for (const path of ["cpu0/thermal_throttle", "cpu1/cache", "cpufreq/thermal_throttle"]) {
      await mkdir(join(dir, path), { recursive: true });
    }
    const paths = await readMaskedPaths(dir);
    expect(paths.filter((path) => path.startsWith(dir))).toEqual([join(dir, "cpu0/thermal_throttle")]);
    expect(paths).toContain("/proc/kcore");
    expect(await readMaskedPaths(join(dir, "none"))).toHaveLength(paths.length - 1);
  } finally {
    await cleanUp();
  }
});
