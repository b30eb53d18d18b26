import type { Container, Pod, PodSpec, PodStatus } from "../../../agent/kube/types.ts";
import { containerAnnotations } from "../../../agent/pods/container-annotations.ts";
import type { PodLocal, ReadyImage } from "../../../agent/pods/local.ts";
import { buildPodStatus, type StatusInputs } from "../../../agent/pods/status.ts";
import type { ContainerStatus, PodSnapshot, SandboxStatus } from "../../../agent/runtime/port.ts";

export function podOf(spec: Partial<PodSpec> = {}, metadata: Partial<Pod["metadata"]> = {}): Pod {
  return {
    metadata: { name: "web", namespace: "ns", uid: "u1", generation: 1, ...metadata },
    spec: { containers: [{ name: "app", image: "image:1" }], restartPolicy: "Always", ...spec },
  };
}

export function sandboxOf(changes: Partial<SandboxStatus> = {}): SandboxStatus {
  return {
    id: "s0",
    podUID: "u1",
    podName: "web",
    podNamespace: "ns",
    attempt: 0,
    ready: true,
    createdAtMs: 1_000,
    labels: {},
    annotations: {},
    runtimeHandler: "",
    ips: ["10.0.0.2"],
    networkMode: "POD",
    ...changes,
  };
}

export function containerOf(changes: Partial<ContainerStatus> = {}): ContainerStatus {
  const name = changes.name ?? "app";
  const attempt = changes.attempt ?? 0;
  const spec: Container = { name, image: "image:1" };
  return {
    id: `${name}-${attempt}`,
    sandboxID: "s0",
    podUID: "u1",
    podName: "web",
    podNamespace: "ns",
    name,
    attempt,
    state: "running",
    createdAtMs: 1_000,
    image: "image:1",
    imageRef: "sha256:1",
    labels: {},
    annotations: containerAnnotations(podOf(), spec, attempt),
    startedAtMs: 2_000,
    finishedAtMs: 0,
    exitCode: 0,
    reason: "",
    message: "",
    logPath: `/var/log/pods/ns_web_u1/${name}/${attempt}.log`,
    mounts: [],
    resources: undefined,
    user: undefined,
    stopSignal: undefined,
    ...changes,
  };
}

export function exited(changes: Partial<ContainerStatus> = {}): ContainerStatus {
  const exitCode = changes.exitCode ?? 0;
  const reason = exitCode === 0 ? "Completed" : "Error";
  return containerOf({ state: "exited", finishedAtMs: 3_000, reason, ...changes });
}

export function snapshot(changes: Partial<PodSnapshot> = {}): PodSnapshot {
  return { podUID: "u1", observedAtMs: 10_000, sandboxes: [sandboxOf()], containers: [], ...changes };
}

export const nothing: PodSnapshot = snapshot({ sandboxes: [] });

export const image: ReadyImage = { imageRef: "sha256:1", image: undefined, wanted: "image:1" };

export function localOf(changes: Partial<PodLocal> = {}): PodLocal {
  return {
    attempts: new Map(),
    images: new Map(),
    crash: new Map(),
    replaced: new Set(),
    endedAtMs: new Map(),
    finished: new Set(),
    condemned: new Set(),
    announced: new Map(),
    stoppedSandboxes: new Set(["s0"]),
    deadContainersMax: 1,
    hooks: new Map(),
    verdict: () => undefined,
    volumes: "ready",
    awaitedVolumes: new Set(),
    terminating: undefined,
    areVolumesGone: false,
    isCleanedUp: false,
    isGone: false,
    resize: undefined,
    hasPlainContainers: true,
    isRuntimeReady: true,
    isNetworkReady: true,
    ...changes,
  };
}

/** A pod's status as it is made of these inputs; without any, of a pod of which nothing runs yet. */
export function statusOf(
  changes: Partial<StatusInputs> = {},
  nowMs = Date.parse("2026-01-02T03:04:05.678Z"),
): PodStatus {
  const inputs: StatusInputs = {
    pod: podOf(),
    observed: nothing,
    previous: {},
    waiting: new Map(),
    terminationMessages: new Map(),
    hasSandbox: true,
    podIPs: ["10.0.0.2"],
    hostIPs: ["192.168.0.1"],
    runtimeName: "containerd",
    isTerminated: false,
    replaced: new Set(),
    hasRecursiveReadOnly: () => false,
    ending: undefined,
    isStarted: () => true,
    isReady: () => true,
    ...changes,
  };
  return buildPodStatus(inputs, nowMs);
}
