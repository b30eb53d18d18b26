import type { ContainerConfig, ContainerSecurityContext, PodSandboxConfig } from "../../../agent/runtime/port.ts";

/** What sandbox and containers of a pod are given that asks for nothing. */

type PlainSandbox = Omit<PodSandboxConfig, "name" | "namespace" | "uid" | "hostname" | "logDirectory" | "cgroupParent">;
type PlainContainer = Omit<ContainerConfig, "name" | "imageRef" | "userSpecifiedImage" | "logPath" | "securityContext">;

/** On the pod network. */
export function plainSandbox(): PlainSandbox {
  return {
    attempt: 0,
    dns: undefined,
    portMappings: [],
    labels: {},
    annotations: {},
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
  };
}

export function plainContainer(): PlainContainer {
  return {
    attempt: 0,
    command: [],
    args: [],
    workingDir: "",
    envs: [],
    mounts: [],
    devices: [],
    cdiDevices: [],
    labels: {},
    annotations: {},
    stdin: false,
    stdinOnce: false,
    tty: false,
    resources: {},
    stopSignal: undefined,
  };
}

/** Of a container: without a seccomp profile and masked paths. */
export function plainSecurity(change: Partial<ContainerSecurityContext> = {}): ContainerSecurityContext {
  return {
    capabilities: { add: [], drop: [] },
    privileged: false,
    namespaceOptions: { network: "POD", pid: "CONTAINER", ipc: "POD", targetID: "" },
    selinux: undefined,
    runAsUser: undefined,
    runAsUsername: undefined,
    runAsGroup: undefined,
    readonlyRootfs: false,
    supplementalGroups: [],
    supplementalGroupsPolicy: "Merge",
    noNewPrivs: false,
    maskedPaths: [],
    readonlyPaths: [],
    seccomp: { type: "Unconfined", localhostRef: "" },
    apparmor: undefined,
    ...change,
  };
}
