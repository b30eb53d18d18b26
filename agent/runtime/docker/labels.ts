import { join } from "node:path";
import type { ContainerConfig, PodSandboxConfig } from "../port.ts";
import type { CgroupWrite } from "./resources.ts";

// The field's own, which cri-dockerd and kubelets of old set too.
const typeLabel = "io.kubernetes.docker.type";
const sandboxIDLabel = "io.kubernetes.sandbox.id";
const logPathLabel = "io.kubernetes.container.logpath";
const annotationPrefix = "annotation.";
const podNameLabel = "io.kubernetes.pod.name";
const podNamespaceLabel = "io.kubernetes.pod.namespace";
const podUIDLabel = "io.kubernetes.pod.uid";
const containerNameLabel = "io.kubernetes.container.name";

// Ours: what Docker would forget otherwise.
const attemptLabel = "io.nodelet.attempt";
// Whose it is, where several nodes share a daemon.
const nodeLabel = "io.nodelet.node";
const imageLabel = "io.nodelet.image";
const runtimeHandlerLabel = "io.nodelet.runtime-handler";
const portMappingsLabel = "io.nodelet.port-mappings";
// Limits that are set by ourselves once the container runs, also by the next agent.
const cgroupWritesLabel = "io.nodelet.cgroup-files";
// Docker adds the image's labels to the container's; this one tells which keys the pod gave, as a JSON list. All that we make has
// it, and so it tells our objects from those of other agents of the same tradition: what has it not is somebody else's. What has
// it may be so, too: see ownership.ts.
const keysLabel = "io.nodelet.keys";

/** What a sandbox's or container's labels tell of the pod that it belongs to. */
interface PodIdentity {
  podUID: string;
  podName: string;
  podNamespace: string;
  attempt: number;
  labels: Record<string, string>;
  annotations: Record<string, string>;
}

export interface SandboxIdentity extends PodIdentity {
  runtimeHandler: string;
  portMappings: PodSandboxConfig["portMappings"];
}

export interface ContainerIdentity extends PodIdentity {
  name: string;
  sandboxID: string;
  /** Image as the pod named it. */
  image: string;
  /** Full path of the log in the pod's log directory. */
  logPath: string;
}

/**
 * Filters for `/containers/json` and `/events`: only what we may have made for pods, of one pod if `podUID` is given. With them
 * the daemon hardly tells of other people's containers at all.
 */
export function podFilters(podUID?: string): { label: string[] } {
  return { label: [keysLabel, typeLabel, podUID === undefined ? podUIDLabel : `${podUIDLabel}=${podUID}`] };
}

/** Sandboxes of whatever node, for `/containers/json`. */
export function allSandboxesFilter(): { label: string[] } {
  return { label: [keysLabel, `${typeLabel}=podsandbox`] };
}

/** The containers of one sandbox, for `/containers/json`. */
export function sandboxContainersFilter(sandboxID: string): { label: string[] } {
  return { label: [keysLabel, `${typeLabel}=container`, `${sandboxIDLabel}=${sandboxID}`] };
}

/** The running containers of pods, without sandboxes; for `/containers/json`. */
export function runningContainersFilter(): { status: string[]; label: string[] } {
  return { status: ["running"], label: [keysLabel, `${typeLabel}=container`, podUIDLabel] };
}

/** What the labels say it is; `undefined` for what is no pod's, or another agent's. */
export function markedAs(labels: Readonly<Record<string, string>>): "sandbox" | "container" | undefined {
  if (labels[keysLabel] === undefined || (labels[podUIDLabel] ?? "") === "") return undefined;
  if (labels[typeLabel] === "podsandbox") return "sandbox";
  return labels[typeLabel] === "container" ? "container" : undefined;
}

/** The node that made it; undefined for what an agent made that did not tell. */
export function nodeOf(labels: Readonly<Record<string, string>>): string | undefined {
  return labels[nodeLabel];
}

/** All labels of a sandbox's pause container. */
export function sandboxLabels(
  config: PodSandboxConfig,
  runtimeHandler: string,
  nodeName: string,
): Record<string, string> {
  return {
    ...podLabels(config.labels, config.annotations),
    ...identityLabels(config),
    [typeLabel]: "podsandbox",
    [nodeLabel]: nodeName,
    [attemptLabel]: String(config.attempt),
    [runtimeHandlerLabel]: runtimeHandler,
    [portMappingsLabel]: JSON.stringify(config.portMappings),
  };
}

/** All labels of an app container. */
export function containerLabels(
  sandboxID: string,
  config: ContainerConfig,
  sandboxConfig: PodSandboxConfig,
  nodeName: string,
): Record<string, string> {
  return {
    ...podLabels(config.labels, config.annotations),
    ...identityLabels(sandboxConfig),
    [containerNameLabel]: config.name,
    [typeLabel]: "container",
    [nodeLabel]: nodeName,
    [sandboxIDLabel]: sandboxID,
    [logPathLabel]: join(sandboxConfig.logDirectory, config.logPath),
    [attemptLabel]: String(config.attempt),
    [imageLabel]: config.userSpecifiedImage,
  };
}

/**
 * The labels, with what must be written into the container's cgroup when it runs. Also when that is nothing: else an image's
 * label of this name would hold.
 */
export function withCgroupWrites(
  labels: Readonly<Record<string, string>>,
  writes: readonly CgroupWrite[],
): Record<string, string> {
  return { ...labels, [cgroupWritesLabel]: JSON.stringify(writes) };
}

/** What {@link withCgroupWrites} noted. */
export function cgroupWritesOf(labels: Readonly<Record<string, string>>): CgroupWrite[] {
  return parseList(labels[cgroupWritesLabel]).filter(isCgroupWrite);
}

export function readSandbox(labels: Readonly<Record<string, string>>): SandboxIdentity {
  return {
    ...readIdentity(labels),
    runtimeHandler: labels[runtimeHandlerLabel] ?? "",
    portMappings: parseList(labels[portMappingsLabel]).filter(isPortMapping),
  };
}

export function readContainer(labels: Readonly<Record<string, string>>): ContainerIdentity {
  return {
    ...readIdentity(labels),
    name: labels[containerNameLabel] ?? "",
    sandboxID: labels[sandboxIDLabel] ?? "",
    image: labels[imageLabel] ?? "",
    logPath: labels[logPathLabel] ?? "",
  };
}

/** The pod's own labels and annotations in one map, and the list of their keys. */
function podLabels(
  labels: Readonly<Record<string, string>>,
  annotations: Readonly<Record<string, string>>,
): Record<string, string> {
  const prefixed = Object.entries(annotations).map(([key, value]) => [annotationPrefix + key, value] as const);
  const all: Record<string, string> = { ...labels, ...Object.fromEntries(prefixed) };
  return { ...all, [keysLabel]: JSON.stringify(Object.keys(all).sort()) };
}

function identityLabels({ name, namespace, uid }: PodSandboxConfig): Record<string, string> {
  return { [podNameLabel]: name, [podNamespaceLabel]: namespace, [podUIDLabel]: uid };
}

function readIdentity(all: Readonly<Record<string, string>>): PodIdentity {
  const labels: Record<string, string> = {};
  const annotations: Record<string, string> = {};
  for (const key of parseList(all[keysLabel])) {
    const value = typeof key === "string" ? all[key] : undefined;
    if (typeof key !== "string" || value === undefined) continue;
    if (key.startsWith(annotationPrefix)) annotations[key.slice(annotationPrefix.length)] = value;
    else labels[key] = value;
  }
  const attempt = all[attemptLabel] ?? "";
  return {
    podUID: all[podUIDLabel] ?? "",
    podName: all[podNameLabel] ?? "",
    podNamespace: all[podNamespaceLabel] ?? "",
    attempt: /^\d+$/.test(attempt) ? Number(attempt) : 0,
    labels,
    annotations,
  };
}

function parseList(text: string | undefined): unknown[] {
  try {
    const parsed: unknown = JSON.parse(text ?? "[]");
    return Array.isArray(parsed) ? parsed : [];
  } catch {
    return []; // someone's label of the same name
  }
}

function isPortMapping(value: unknown): value is PodSandboxConfig["portMappings"][number] {
  if (typeof value !== "object" || value === null) return false;
  const { protocol, containerPort, hostPort, hostIP } = value as Record<string, unknown>;
  return (
    ["TCP", "UDP", "SCTP"].includes(String(protocol)) &&
    typeof containerPort === "number" &&
    typeof hostPort === "number" &&
    typeof hostIP === "string"
  );
}

function isCgroupWrite(value: unknown): value is CgroupWrite {
  if (typeof value !== "object" || value === null) return false;
  const { controller, file, content, isOptional } = value as Record<string, unknown>;
  return (
    (controller === "memory" || controller === "hugetlb") &&
    typeof file === "string" &&
    /^(?:memory|hugetlb)\.[a-zA-Z0-9_.]+$/.test(file) &&
    typeof content === "string" &&
    typeof isOptional === "boolean"
  );
}
