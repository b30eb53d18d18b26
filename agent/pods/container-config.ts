import { randomBytes } from "node:crypto";
import { chmod, mkdir, open, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { linuxResources } from "../kube/pod-resources.ts";
import type { Container, EphemeralContainer, Pod } from "../kube/types.ts";
import { writeFileAtomic } from "../lib/atomic-file.ts";
import { AgentError } from "../lib/errors.ts";
import type { EnsuredImage } from "../runtime/images.ts";
import type { ContainerConfig, Mount, NamespaceOptions, PodSnapshot, SandboxStatus } from "../runtime/port.ts";
import { containerAnnotations, restartCountOf } from "./container-annotations.ts";
import { buildEnv } from "./env.ts";
import { expandCommand } from "./expand.ts";
import { needsHostsFile, podHostname, renderHostNetworkHosts, renderHosts } from "./hosts.ts";
import { mountedImages } from "./image-volumes.ts";
import type { ReadyImage } from "./local.ts";
import { podLogDirName, uidOf } from "./names.ts";
import { namespaceIndex, type PodDeps } from "./port.ts";
import { containerSecurityContext, sandboxNamespaces } from "./security.ts";

const terminationLogMode = 0o666;
const nodeHostsFile = "/etc/hosts";

/** What one start of one container is made from. */
export interface ContainerStart {
  pod: Pod;
  container: Container | EphemeralContainer;
  sandbox: SandboxStatus;
  observed: PodSnapshot;
  image: EnsuredImage & Pick<ReadyImage, "ofVolumes">;
  restartCount: number;
  podIPs: readonly string[];
  /** See `readMaskedPaths`. */
  maskedPaths: readonly string[];
}

/**
 * The CRI configuration of one container, with the files it mounts (hosts, termination log, log directory) made.
 * Rejects with an `AgentError`; every code is a CreateContainerConfigError.
 */
export async function buildContainerConfig(start: ContainerStart, deps: PodDeps): Promise<ContainerConfig> {
  const { pod, container, sandbox, image, restartCount, podIPs } = start;
  const { settings, volumes, node } = deps;
  const uid = uidOf(pod);
  const envs = await buildEnv(pod, container, {
    objects: deps.objects,
    services: {
      hasSynced: deps.services.hasSynced,
      inNamespace: (namespace) => deps.services.byIndex(namespaceIndex, namespace),
    },
    nodeAllocatable: node.allocatable(),
    readVolumeFile: (volume, path) => volumes.readVolumeFile(uid, volume, path),
    podIPs,
    hostIPs: node.hostIPs(),
  });
  const env = new Map(envs.map(({ key, value }) => [key, value]));
  const volumeGroups = volumes.supplementalGroups(uid);
  const [volumeMounts, hosts, terminationLog] = await Promise.all([
    volumes.mounts(pod, container, env, {
      podIPs,
      recursiveReadOnlySupported: node.hasRecursiveReadOnly(sandbox.runtimeHandler),
      userns: undefined,
      images: mountedImages(image.ofVolumes, sandbox.runtimeHandler),
    }),
    hostsMount(pod, container, podIPs, deps),
    terminationLogMount(uid, container, settings.rootDir),
    mkdir(join(settings.podLogsDir, podLogDirName(pod), container.name), { recursive: true, mode: 0o755 }),
  ]);
  return {
    name: container.name,
    attempt: restartCount,
    imageRef: image.imageRef,
    userSpecifiedImage: container.image ?? "",
    ...expandCommand(container, env),
    workingDir: container.workingDir ?? "",
    envs,
    mounts: [...volumeMounts, ...hosts, ...terminationLog],
    devices: volumes.devices(uid, container),
    cdiDevices: [],
    labels: {
      "io.kubernetes.container.name": container.name,
      "io.kubernetes.pod.name": pod.metadata.name,
      "io.kubernetes.pod.namespace": pod.metadata.namespace ?? "",
      "io.kubernetes.pod.uid": uid,
    },
    annotations: containerAnnotations(pod, container, restartCount),
    logPath: join(container.name, `${restartCount}.log`),
    stdin: container.stdin ?? false,
    stdinOnce: container.stdinOnce ?? false,
    tty: container.tty ?? false,
    resources: linuxResources(pod, container, settings.resources),
    securityContext: containerSecurityContext(pod, container, image.image, namespacesOf(start), {
      rootDir: settings.rootDir,
      seccompDefault: settings.seccompDefault,
      volumeGroups,
      maskedPaths: start.maskedPaths,
    }),
    stopSignal: undefined,
  };
}

// An ephemeral container may look into the processes of the container it debugs.
function namespacesOf({ pod, container, observed }: ContainerStart): NamespaceOptions {
  const namespaces = sandboxNamespaces(pod);
  const target = "targetContainerName" in container ? container.targetContainerName : undefined;
  if (target === undefined || target === "" || namespaces.pid !== "CONTAINER") return namespaces;
  const found = observed.containers.find(({ name }) => name === target);
  if (found === undefined) throw new AgentError("Invalid", `unable to find target container ${target}`);
  return { ...namespaces, pid: "TARGET", targetID: found.id };
}

async function hostsMount(
  pod: Pod,
  container: Container,
  podIPs: readonly string[],
  { settings }: PodDeps,
): Promise<Mount[]> {
  if (!needsHostsFile(pod, container, podIPs)) return [];
  const path = join(settings.rootDir, "pods", uidOf(pod), "etc-hosts");
  const text =
    pod.spec.hostNetwork === true
      ? renderHostNetworkHosts(pod, await readFile(nodeHostsFile, "utf8"))
      : renderHosts(pod, podIPs, podHostname(pod, settings.clusterDomain));
  // Written in place of the old file only if it differs: running containers have the old inode mounted.
  if ((await readFile(path, "utf8").catch(() => undefined)) !== text) await writeFileAtomic(path, text, 0o644);
  return [bind(path, "/etc/hosts", settings.selinuxEnabled)];
}

async function terminationLogMount(uid: string, container: Container, rootDir: string): Promise<Mount[]> {
  const target = container.terminationMessagePath ?? "";
  if (target === "") return [];
  const dir = join(rootDir, "pods", uid, "containers", container.name);
  await mkdir(dir, { recursive: true, mode: 0o750 });
  const path = join(dir, randomBytes(4).toString("hex"));
  const file = await open(path, "wx", terminationLogMode);
  await file.close();
  await chmod(path, terminationLogMode); // whatever the umask: any user in the container may write it
  return [bind(path, target, false)];
}

function bind(hostPath: string, containerPath: string, selinuxRelabel: boolean): Mount {
  return { hostPath, containerPath, readonly: false, selinuxRelabel, propagation: "PRIVATE", recursiveReadOnly: false };
}

/**
 * Restart count of the next instance of a container: one more than the newest that the runtime knows; without one, one
 * more than the newest log file tells, so that no log is overwritten.
 */
export async function nextRestartCount(
  pod: Pod,
  containerName: string,
  observed: PodSnapshot,
  podLogsDir: string,
): Promise<number> {
  const newest = observed.containers.find(({ name }) => name === containerName);
  if (newest !== undefined) return restartCountOf(newest) + 1;
  const dir = join(podLogsDir, podLogDirName(pod), containerName);
  const names = await readdir(dir).catch((err: unknown) => {
    if ((err as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw err;
  });
  const numbers = names.flatMap((name) => /^(\d+)\.log/.exec(name)?.[1] ?? []).map(Number);
  return numbers.length === 0 ? 0 : Math.max(...numbers) + 1;
}
