import type { ContextOfDaemon } from "../../../../agent/runtime/docker/create-body.ts";
import type { DaemonInfo } from "../../../../agent/runtime/docker/daemon.ts";
import type {
  ContainerConfig,
  ContainerSecurityContext,
  Mount,
  PodSandboxConfig,
} from "../../../../agent/runtime/port.ts";

/** A daemon of Debian 12 unless changed. */
export function daemonInfo(change: Partial<DaemonInfo> = {}): DaemonInfo {
  return {
    version: "20.10.24",
    apiVersion: "1.41",
    cgroupDriver: "cgroupfs",
    cgroupVersion: 1,
    rootDir: "/var/lib/docker",
    storageDriver: "overlay2",
    securityOptions: ["name=seccomp,profile=default"],
    runtimes: ["runc"],
    defaultRuntime: "runc",
    swapLimit: true,
    memoryLimit: true,
    cpuCfsQuota: true,
    pidsLimit: true,
    liveRestore: false,
    loggingDriver: "json-file",
    hasCDI: false,
    containers: 0,
    ...change,
  };
}

export function context(change: Partial<DaemonInfo> = {}, oomScoreAdjMin = -1000): ContextOfDaemon {
  return { daemon: daemonInfo(change), nodeName: "node-1", oomScoreAdjMin, hasIPv6: true };
}

/** Pod shop/web on the pod network. */
export function sandbox(change: Partial<PodSandboxConfig> = {}): PodSandboxConfig {
  return {
    name: "web",
    namespace: "shop",
    uid: "u1",
    attempt: 2,
    hostname: "web-0",
    logDirectory: "/var/log/pods/shop_web_u1",
    dns: undefined,
    portMappings: [],
    labels: { app: "web" },
    annotations: {},
    cgroupParent: "/kubepods/burstable/podu1",
    sysctls: {},
    resources: undefined,
    overhead: undefined,
    securityContext: {
      namespaceOptions: { network: "POD", pid: "CONTAINER", ipc: "POD", targetID: "" },
      privileged: false,
      runAsUser: undefined,
      runAsGroup: undefined,
      supplementalGroups: [],
      supplementalGroupsPolicy: "Merge",
      selinux: undefined,
      seccomp: { type: "RuntimeDefault", localhostRef: "" },
      apparmor: undefined,
      readonlyRootfs: false,
    },
    ...change,
  };
}

/** Security of a container that asks for nothing. */
export function security(change: Partial<ContainerSecurityContext> = {}): ContainerSecurityContext {
  return {
    capabilities: { add: [], drop: [] },
    privileged: false,
    namespaceOptions: { network: "POD", pid: "CONTAINER", ipc: "POD", targetID: "" },
    selinux: undefined,
    runAsUser: 0,
    runAsUsername: undefined,
    runAsGroup: undefined,
    readonlyRootfs: false,
    supplementalGroups: [],
    supplementalGroupsPolicy: "Merge",
    noNewPrivs: false,
    maskedPaths: ["/proc/kcore"],
    readonlyPaths: ["/proc/sys"],
    seccomp: { type: "RuntimeDefault", localhostRef: "" },
    apparmor: undefined,
    ...change,
  };
}

/** Container app of pod shop/web. */
export function container(change: Partial<ContainerConfig> = {}): ContainerConfig {
  return {
    name: "app",
    attempt: 3,
    imageRef: "sha256:abc",
    userSpecifiedImage: "web:1",
    command: [],
    args: [],
    workingDir: "",
    envs: [],
    mounts: [],
    devices: [],
    cdiDevices: [],
    labels: {},
    annotations: {},
    logPath: "app/3.log",
    stdin: false,
    stdinOnce: false,
    tty: false,
    resources: {},
    securityContext: security(),
    stopSignal: undefined,
    ...change,
  };
}

export function mount(change: Partial<Mount> = {}): Mount {
  return {
    containerPath: "/data",
    hostPath: "/srv/data",
    readonly: false,
    selinuxRelabel: false,
    propagation: "PRIVATE",
    recursiveReadOnly: false,
    ...change,
  };
}
