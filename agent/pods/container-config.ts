import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { linuxResources, uidOf } from "../kube/pod-resources.ts";
import { keyOf } from "../kube/port.ts";
import type { Container, EphemeralContainer, Pod } from "../kube/types.ts";
import { AgentError } from "../lib/errors.ts";
import type { EnsuredImage } from "../runtime/images.ts";
import type { ContainerConfig, Mount, NamespaceOptions, PodSnapshot, SandboxStatus } from "../runtime/port.ts";
import { containerAnnotations, restartCountOf } from "./container-annotations.ts";
import { hostsMount, terminationLogMount } from "./container-files.ts";
import { buildEnv } from "./env.ts";
import { expandCommand } from "./expand.ts";
import { kernelHostname, podHostname } from "./hosts.ts";
import { mountedImages } from "./image-volumes.ts";
import type { ReadyImage } from "./local.ts";
import { podLogDirName } from "./names.ts";
import { namespaceIndex, type PodDeps } from "./port.ts";
import { containerSecurityContext, sandboxNamespaces } from "./security.ts";
import type { IDMappings } from "./user-namespaces.ts";

/** What one start of one container is made from. */
export interface ContainerStart {
  pod: Pod;
  container: Container | EphemeralContainer;
  sandbox: SandboxStatus;
  observed: PodSnapshot;
  image: EnsuredImage & Pick<ReadyImage, "ofVolumes">;
  restartCount: number;
  podIPs: readonly string[];
  /** IDs of the pod's own user namespace; undefined: it shares the node's. */
  userns?: IDMappings;
  /** See `readMaskedPaths`. */
  maskedPaths: readonly string[];
  /** Ends what waits for a volume's file system. */
  signal?: AbortSignal;
}

/**
 * The CRI configuration of one container, with the files it mounts (hosts, termination log, log directory) made.
 * Rejects with an `AgentError`; every code is a CreateContainerConfigError.
 */
export async function buildContainerConfig(start: ContainerStart, deps: PodDeps): Promise<ContainerConfig> {
  const { pod, container, sandbox, image, restartCount, podIPs, userns } = start;
  const { settings, volumes, node } = deps;
  const uid = uidOf(pod);
  // In this order, of several things that are wrong the same one is told each time.
  const hostname = podHostname(pod, settings.clusterDomain);
  kernelHostname(pod, hostname);
  const devices = volumes.devices(uid, container);
  const envs = await buildEnv(pod, container, {
    objects: deps.objects,
    services: {
      hasSynced: deps.services.hasSynced,
      get: (key) => deps.services.get(keyOf(key)),
      inNamespace: (namespace) => deps.services.byIndex(namespaceIndex, namespace),
    },
    nodeAllocatable: node.allocatable(),
    readVolumeFile: (volume, path) => volumes.readVolumeFile(uid, volume, path),
    isEnvFileOn: settings.envFiles,
    podIPs,
    hostIPs: node.hostIPs(),
  });
  const env = new Map(envs.map(({ key, value }) => [key, value]));
  const texts = new Map([...env].filter((entry): entry is [string, string] => typeof entry[1] === "string"));
  const volumeMounts = await volumes.mounts(pod, container, texts, {
    podIPs,
    recursiveReadOnlySupported: node.hasRecursiveReadOnly(sandbox.runtimeHandler),
    userns,
    images: mountedImages(image.ofVolumes, sandbox.runtimeHandler),
    ...(start.signal === undefined ? {} : { signal: start.signal }),
  });
  const hosts = await hostsMount(pod, container, { podIPs, hostname }, settings);
  const securityContext = containerSecurityContext(pod, container, image.image, namespacesOf(start), {
    rootDir: settings.rootDir,
    seccompDefault: settings.seccompDefault,
    volumeGroups: volumes.supplementalGroups(uid),
    maskedPaths: start.maskedPaths,
  });
  await mkdir(join(settings.podLogsDir, podLogDirName(pod), container.name), { recursive: true, mode: 0o755 });
  // Last, when nothing else can fail: it stays for as long as the pod does.
  const terminationLog = await terminationLogMount(pod, container, settings, deps.log);
  return {
    name: container.name,
    attempt: restartCount,
    imageRef: image.imageRef,
    userSpecifiedImage: container.image ?? "",
    ...expandCommand(container, env),
    workingDir: container.workingDir ?? "",
    envs,
    mounts: [...volumeMounts, ...[...hosts, ...terminationLog].map((mount) => mappedMount(mount, userns))],
    devices,
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
    securityContext,
    stopSignal: container.lifecycle?.stopSignal,
  };
}

// Files of the node appear in the pod's user namespace with the owners that they have outside.
function mappedMount(mount: Mount, userns: IDMappings | undefined): Mount {
  return userns === undefined ? mount : { ...mount, uidMappings: userns.uids, gidMappings: userns.gids };
}

// An ephemeral container may look into the processes of the container it debugs.
function namespacesOf({ pod, container, observed, userns }: ContainerStart): NamespaceOptions {
  const namespaces = sandboxNamespaces(pod, userns);
  const target = "targetContainerName" in container ? container.targetContainerName : undefined;
  if (target === undefined || target === "" || namespaces.pid !== "CONTAINER") return namespaces;
  const found = observed.containers.find(({ name }) => name === target);
  if (found === undefined) throw new AgentError("Invalid", `unable to find target container ${target}`);
  return { ...namespaces, pid: "TARGET", targetID: found.id };
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
