import type { ContextOfDaemon } from "../../../../agent/runtime/docker/create-body.ts";
import type { DaemonInfo } from "../../../../agent/runtime/docker/daemon.ts";
import type {
  ContainerConfig,
  ContainerSecurityContext,
  Mount,
  PodSandboxConfig,
} from "../../../../agent/runtime/port.ts";
import { plainContainer, plainSandbox, plainSecurity } from "../../../support/runtime/plain-configs.ts";

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
    hasPlainContainers: true,
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
    ...plainSandbox(),
    name: "web",
    namespace: "shop",
    uid: "u1",
    attempt: 2,
    hostname: "web-0",
    logDirectory: "/var/log/pods/shop_web_u1",
    labels: { app: "web" },
    cgroupParent: "/kubepods/burstable/podu1",
    ...change,
  };
}

/** Security of a container that asks for nothing, as a worker has it made out. */
export function security(change: Partial<ContainerSecurityContext> = {}): ContainerSecurityContext {
  return plainSecurity({
    runAsUser: 0,
    maskedPaths: ["/proc/kcore"],
    readonlyPaths: ["/proc/sys"],
    seccomp: { type: "RuntimeDefault", localhostRef: "" },
    ...change,
  });
}

/** Container app of pod shop/web. */
export function container(change: Partial<ContainerConfig> = {}): ContainerConfig {
  return {
    ...plainContainer(),
    name: "app",
    attempt: 3,
    imageRef: "sha256:abc",
    userSpecifiedImage: "web:1",
    logPath: "app/3.log",
    securityContext: security(),
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
