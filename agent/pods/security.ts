import { readdir } from "node:fs/promises";
import { join } from "node:path";
import type { Container, Pod, SecurityProfileSpec, SELinuxOptions } from "../kube/types.ts";
import { AgentError } from "../lib/errors.ts";
import type {
  ContainerSecurityContext,
  ImageInfo,
  NamespaceOptions,
  SandboxSecurityContext,
  SecurityProfile,
  SELinuxOption,
} from "../runtime/port.ts";
import { specContainers } from "./names.ts";
import type { IDMappings } from "./user-namespaces.ts";

export interface SecurityContextOptions {
  rootDir: string;
  /** Containers without a seccomp profile get the runtime's default one. */
  seccompDefault: boolean;
  /** Hidden from containers with procMount Default; see {@link readMaskedPaths}. */
  maskedPaths: readonly string[];
  /** Groups that volumes add. */
  volumeGroups: readonly number[];
}

const appArmorAnnotationPrefix = "container.apparmor.security.beta.kubernetes.io/";

// Paths that are hidden from, or read-only to, containers with procMount Default: the container runtimes' common list.
const readonlyPathsDefault = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
const maskedPathsDefault = [
  ...["asound", "acpi", "interrupts", "kcore", "keys", "latency_stats", "timer_list"].map((name) => `/proc/${name}`),
  ...["timer_stats", "sched_debug", "scsi"].map((name) => `/proc/${name}`),
  "/sys/firmware",
  "/sys/devices/virtual/powercap",
];

/**
 * Namespaces of the pod's sandbox.
 *
 * @param userns the IDs of its own user namespace; undefined: it shares the node's
 */
export function sandboxNamespaces(pod: Pod, userns?: IDMappings): NamespaceOptions {
  const { hostNetwork, hostPID, hostIPC, shareProcessNamespace } = pod.spec;
  return {
    network: hostNetwork === true ? "NODE" : "POD",
    pid: hostPID === true ? "NODE" : shareProcessNamespace === true ? "POD" : "CONTAINER",
    ipc: hostIPC === true ? "NODE" : "POD",
    targetID: "",
    ...(userns === undefined ? {} : { userns: { mode: "POD", ...userns } }),
  };
}

/** CRI security context of the sandbox; pod-level settings only. */
export function sandboxSecurityContext(
  pod: Pod,
  volumeGroups: readonly number[],
  userns?: IDMappings,
): SandboxSecurityContext {
  const context = pod.spec.securityContext;
  return {
    namespaceOptions: sandboxNamespaces(pod, userns),
    privileged: specContainers(pod).some(({ container }) => container.securityContext?.privileged === true),
    runAsUser: context?.runAsUser,
    runAsGroup: context?.runAsGroup,
    supplementalGroups: supplementalGroups(pod, volumeGroups),
    supplementalGroupsPolicy: context?.supplementalGroupsPolicy ?? "Merge",
    selinux: selinuxOption(context?.seLinuxOptions),
    seccomp: { type: "RuntimeDefault", localhostRef: "" },
    apparmor: undefined,
    readonlyRootfs: false,
  };
}

/**
 * CRI security context of one container: its own settings over the pod's over the image's user.
 * Rejects with code Invalid when `runAsNonRoot` forbids the user, or a profile is malformed.
 *
 * @param namespaces the sandbox's, or a copy that targets another container
 */
export function containerSecurityContext(
  pod: Pod,
  container: Container,
  image: ImageInfo | undefined,
  namespaces: NamespaceOptions,
  options: SecurityContextOptions,
): ContainerSecurityContext {
  const own = container.securityContext;
  const ofPod = pod.spec.securityContext;
  const runAsUser = own?.runAsUser ?? ofPod?.runAsUser;
  if (own?.runAsNonRoot ?? ofPod?.runAsNonRoot ?? false) checkNonRoot(pod, container, runAsUser, image);
  const unmasked = own?.procMount === "Unmasked" || own?.privileged === true;
  return {
    capabilities: { add: own?.capabilities?.add ?? [], drop: own?.capabilities?.drop ?? [] },
    privileged: own?.privileged ?? false,
    namespaceOptions: namespaces,
    selinux: selinuxOption(own?.seLinuxOptions ?? ofPod?.seLinuxOptions),
    runAsUser: runAsUser ?? imageUserID(image),
    runAsUsername: runAsUser === undefined && imageUserID(image) === undefined ? image?.username : undefined,
    runAsGroup: own?.runAsGroup ?? ofPod?.runAsGroup,
    readonlyRootfs: own?.readOnlyRootFilesystem ?? false,
    supplementalGroups: supplementalGroups(pod, options.volumeGroups),
    supplementalGroupsPolicy: ofPod?.supplementalGroupsPolicy ?? "Merge",
    noNewPrivs: own?.allowPrivilegeEscalation === false,
    maskedPaths: unmasked ? [] : [...options.maskedPaths],
    readonlyPaths: unmasked ? [] : [...readonlyPathsDefault],
    seccomp: seccompProfile(own?.seccompProfile ?? ofPod?.seccompProfile, options),
    apparmor: appArmorProfile(pod, container),
  };
}

// An image without a user runs as 0.
function imageUserID(image: ImageInfo | undefined): number | undefined {
  if (image === undefined) return undefined;
  if (image.uid !== undefined) return image.uid;
  return image.username === "" ? 0 : undefined;
}

function supplementalGroups(pod: Pod, volumeGroups: readonly number[]): number[] {
  const { fsGroup, supplementalGroups: groups = [] } = pod.spec.securityContext ?? {};
  return [...new Set([...(fsGroup === undefined ? [] : [fsGroup]), ...groups, ...volumeGroups])];
}

function checkNonRoot(pod: Pod, container: Container, runAsUser: number | undefined, image: ImageInfo | undefined) {
  const about = `(pod: "${pod.metadata.name}_${pod.metadata.namespace ?? ""}(${pod.metadata.uid ?? ""})", container: ${container.name})`;
  if (runAsUser !== undefined) {
    if (runAsUser === 0) throw new AgentError("Invalid", `container's runAsUser breaks non-root policy ${about}`);
    return;
  }
  const uid = imageUserID(image);
  if (uid === 0) throw new AgentError("Invalid", `container has runAsNonRoot and image will run as root ${about}`);
  if (uid === undefined) {
    throw new AgentError(
      "Invalid",
      `container has runAsNonRoot and image has non-numeric user (${image?.username ?? ""}), cannot verify user is non-root ${about}`,
    );
  }
}

function selinuxOption(options: SELinuxOptions | undefined): SELinuxOption | undefined {
  if (options === undefined) return undefined;
  const { user = "", role = "", type = "", level = "" } = options;
  return { user, role, type, level };
}

function seccompProfile(spec: SecurityProfileSpec | undefined, options: SecurityContextOptions): SecurityProfile {
  if (spec === undefined) return { type: options.seccompDefault ? "RuntimeDefault" : "Unconfined", localhostRef: "" };
  if (spec.type !== "Localhost") return { type: spec.type, localhostRef: "" };
  const profile = spec.localhostProfile ?? "";
  if (profile === "" || profile.startsWith("/") || profile.split("/").includes("..")) {
    throw new AgentError(
      "Invalid",
      `seccompProfile.localhostProfile "${profile}" must be a path inside the seccomp folder`,
    );
  }
  return { type: "Localhost", localhostRef: join(options.rootDir, "seccomp", profile) };
}

function appArmorProfile(pod: Pod, container: Container): SecurityProfile | undefined {
  const own = container.securityContext?.appArmorProfile;
  const annotation = pod.metadata.annotations?.[`${appArmorAnnotationPrefix}${container.name}`];
  const spec = own ?? fromAnnotation(annotation) ?? pod.spec.securityContext?.appArmorProfile;
  if (spec === undefined) return undefined;
  return { type: spec.type, localhostRef: spec.type === "Localhost" ? (spec.localhostProfile ?? "") : "" };
}

function fromAnnotation(value: string | undefined): SecurityProfileSpec | undefined {
  if (value === undefined || value === "") return undefined;
  if (value === "runtime/default") return { type: "RuntimeDefault" };
  if (value === "unconfined") return { type: "Unconfined" };
  if (value.startsWith("localhost/")) {
    return { type: "Localhost", localhostProfile: value.slice("localhost/".length) };
  }
  throw new AgentError(
    "Invalid",
    `AppArmor annotation "${value}" must be runtime/default, unconfined or localhost/NAME`,
  );
}

/**
 * Paths hidden from containers with procMount Default. The CPUs' throttle counters tell neighbours about each other's
 * load; only those that this machine has are named.
 */
export async function readMaskedPaths(cpuDir = "/sys/devices/system/cpu"): Promise<string[]> {
  const entries = await readdir(cpuDir).catch((): string[] => []); // no sysfs, nothing to hide
  const cpus = entries.filter((name) => /^cpu\d+$/.test(name));
  const throttles = cpus.map(async (cpu) => {
    const names = await readdir(`${cpuDir}/${cpu}`).catch((): string[] => []);
    return names.includes("thermal_throttle") ? [`${cpuDir}/${cpu}/thermal_throttle`] : [];
  });
  return [...maskedPathsDefault, ...(await Promise.all(throttles)).flat()];
}
