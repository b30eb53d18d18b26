import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { ContainerConfig, PodSandboxConfig } from "../../../agent/runtime/port.ts";

let pods = 0;

/** A sandbox config as a worker would build it for a plain pod; each call is another pod. Its log directory is made. */
export async function sandboxConfig(
  dir: string,
  cgroupRoot: string,
  change: Partial<PodSandboxConfig> = {},
): Promise<PodSandboxConfig> {
  pods += 1;
  const name = change.name ?? `pod-${pods}`;
  const namespace = change.namespace ?? "default";
  const uid = change.uid ?? `uid-${process.pid}-${pods}`;
  const config: PodSandboxConfig = {
    name,
    namespace,
    uid,
    attempt: 0,
    hostname: name,
    logDirectory: join(dir, "pods", `${namespace}_${name}_${uid}`),
    dns: undefined,
    portMappings: [],
    labels: {
      "io.kubernetes.pod.name": name,
      "io.kubernetes.pod.namespace": namespace,
      "io.kubernetes.pod.uid": uid,
    },
    annotations: {},
    cgroupParent: `${cgroupRoot}/pod${uid}`,
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
  await mkdir(config.logDirectory, { recursive: true });
  return config;
}

/** A container config for a plain container of that sandbox. The directory of its log is made. */
export async function containerConfig(
  sandbox: PodSandboxConfig,
  name: string,
  imageRef: string,
  command: string[],
  change: Partial<ContainerConfig> = {},
): Promise<ContainerConfig> {
  const attempt = change.attempt ?? 0;
  await mkdir(join(sandbox.logDirectory, name), { recursive: true });
  return {
    name,
    attempt,
    imageRef,
    userSpecifiedImage: imageRef,
    command,
    args: [],
    workingDir: "",
    envs: [],
    mounts: [],
    devices: [],
    cdiDevices: [],
    labels: { ...sandbox.labels, "io.kubernetes.container.name": name },
    annotations: {},
    logPath: `${name}/${attempt}.log`,
    stdin: false,
    stdinOnce: false,
    tty: false,
    resources: {},
    securityContext: {
      capabilities: { add: [], drop: [] },
      privileged: false,
      namespaceOptions: sandbox.securityContext.namespaceOptions,
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
    },
    stopSignal: undefined,
    ...change,
  };
}
