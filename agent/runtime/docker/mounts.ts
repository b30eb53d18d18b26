import { mkdir } from "node:fs/promises";
import { posix } from "node:path";
import { AgentError, messageOf } from "../../lib/errors.ts";
import { exec } from "../../lib/exec.ts";
import { lookAt } from "../../volumes/look.ts";
import type { Mount } from "../port.ts";
import { type BindMount, type ContextOfDaemon, type HostConfig, knowsRecursiveReadOnly } from "./create-body.ts";
import { compareVersions, type DaemonInfo, hasSecurityOption } from "./daemon.ts";

const propagations = { HOST_TO_CONTAINER: "rslave", BIDIRECTIONAL: "rshared" } as const;

/**
 * Mounts of a container in Docker's words. Throws Invalid or Unimplemented for what Docker cannot mount. Pure.
 *
 * Of two mounts at one place the later wins, as it would by covering the other; Docker refuses such a pair.
 */
export function dockerMounts(
  what: string,
  mounts: readonly Mount[],
  { daemon }: Pick<ContextOfDaemon, "daemon">,
): Pick<HostConfig, "Mounts" | "Binds"> {
  const places = new Map<string, Mount>();
  for (const mount of mounts) {
    checkMount(what, mount, daemon);
    const target = cleanPath(mount.containerPath);
    places.delete(target); // so that the later one keeps its own turn
    places.set(target, mount);
  }
  const binds: string[] = [];
  const others: BindMount[] = [];
  for (const [target, mount] of places) {
    if (mount.selinuxRelabel && hasSecurityOption(daemon, "selinux")) binds.push(relabelledBind(what, target, mount));
    else others.push(bindMount(target, mount, daemon));
  }
  return { ...(others.length === 0 ? {} : { Mounts: others }), ...(binds.length === 0 ? {} : { Binds: binds }) };
}

function checkMount(what: string, mount: Mount, daemon: DaemonInfo): void {
  const { containerPath, uidMappings = [], gidMappings = [], image, recursiveReadOnly, selinuxRelabel } = mount;
  const refuse = (why: string): never => {
    throw new AgentError("Unimplemented", `${what}: mount at ${containerPath}: ${why}`);
  };
  if (image !== undefined) refuse(noImageVolumes);
  if (uidMappings.length > 0 || gidMappings.length > 0) refuse("Docker has no ID-mapped mounts");
  if (!recursiveReadOnly) return;
  if (!knowsRecursiveReadOnly(daemon)) refuse(noRecursiveReadOnly(daemon));
  if (selinuxRelabel && hasSecurityOption(daemon, "selinux")) {
    refuse("Docker cannot relabel a volume for SELinux and mount it recursively read-only");
  }
}

/** Why a pod with an image volume is refused, for people. */
export const noImageVolumes = "image volumes need a CRI runtime: Docker has no stable way to mount an image";

// Mounts can be made read-only with all below them since then (mount_setattr).
const recursiveReadOnlyKernel = "5.12";

/**
 * True if a handler ("" is the daemon's default) mounts recursively read-only when told to: a daemon that knows how, runc, which every
 * such daemon comes with, and a kernel that can. Pure.
 *
 * @param kernelVersion as `uname -r` tells it
 */
export function hasRecursiveReadOnly(handler: string, daemon: DaemonInfo, kernelVersion: string): boolean {
  const [version = "0.0"] = /^\d+\.\d+/.exec(kernelVersion) ?? [];
  const name = handler === "" ? daemon.defaultRuntime : handler;
  return knowsRecursiveReadOnly(daemon) && name === "runc" && compareVersions(version, recursiveReadOnlyKernel) >= 0;
}

/** Why a pod with a mount that must be recursively read-only is refused, for people. */
export function noRecursiveReadOnly({ version }: Pick<DaemonInfo, "version">): string {
  return `recursive read-only mounts need Docker Engine 25 or later; this is ${version}`;
}

function bindMount(target: string, mount: Mount, daemon: DaemonInfo): BindMount {
  const { readonly: isReadOnly, recursiveReadOnly, propagation } = mount;
  // Without a word about it newer daemons make submounts read-only as well, which Kubernetes does only when asked to.
  const recursion = !knowsRecursiveReadOnly(daemon) || !isReadOnly ? undefined : recursiveReadOnly;
  return {
    Type: "bind",
    Source: cleanPath(mount.hostPath),
    Target: target,
    ReadOnly: isReadOnly,
    BindOptions: {
      // Private is what Docker takes when nothing is said. It must not be: of a mount of its own data root it refuses that,
      // and takes a slave where it can.
      ...(propagation === "PRIVATE" ? {} : { Propagation: propagations[propagation] }),
      ...(recursion === true ? { ReadOnlyForceRecursive: true } : {}),
      ...(recursion === false ? { ReadOnlyNonRecursive: true } : {}),
    },
  };
}

/** Only the older form of a mount can be relabelled. Without a propagation in it Docker takes the one that it needs. */
function relabelledBind(what: string, target: string, mount: Mount): string {
  const source = cleanPath(mount.hostPath);
  for (const path of [source, target]) {
    if (path.includes(":")) {
      throw new AgentError(
        "Invalid",
        `${what}: Docker cannot relabel a mount for SELinux with a colon in its path: ${path}`,
      );
    }
  }
  const modes = [
    "Z", // the pod's own label: CRI runtimes give volumes to one pod and no other, too
    ...(mount.readonly ? ["ro"] : []),
    ...(mount.propagation === "PRIVATE" ? [] : [propagations[mount.propagation]]),
  ];
  return `${source}:${target}:${modes.join(",")}`;
}

function cleanPath(path: string): string {
  const clean = posix.normalize(path);
  return clean.length > 1 && clean.endsWith("/") ? clean.slice(0, -1) : clean;
}

// What a CRI runtime gives a directory that it makes for a mount.
const missingDirectoryMode = 0o755;

/**
 * Makes a directory for each mount whose path on the host does not exist, as CRI runtimes do and Docker does not.
 * Rejects, naming the path, with Invalid if one cannot be made, DeadlineExceeded if its file system does not answer.
 */
export async function makeMissingSources(
  what: string,
  mounts: readonly Pick<Mount, "hostPath" | "image">[],
): Promise<void> {
  const paths = [...new Set(mounts.filter(({ image }) => image === undefined).map(({ hostPath }) => hostPath))];
  if (await areThere(paths)) return;
  const never = new AbortController().signal;
  const looks = paths.map(async (path) => ({ path, look: await lookAt(path, never) }));
  for (const { path, look } of await Promise.all(looks)) {
    if (look.kind === "absent") await makeDirectory(what, path);
    const words = `${what}: path on the node ${path}: `;
    if (look.kind === "refused") throw new AgentError("Invalid", words + look.message);
    if (look.kind === "silent") throw new AgentError("DeadlineExceeded", words + look.message);
  }
}

// File systems that answer do so in milliseconds. After this each path gets a look, and more time, of its own.
const looksTimeoutMs = 2_000;

/**
 * Whether all can be looked at, by one process for all: that is the common case. It is another process, as a call for a network
 * mount whose server is gone never returns and would take one of our few threads with it for good.
 */
async function areThere(paths: readonly string[]): Promise<boolean> {
  if (paths.length === 0) return true;
  const { failure } = await exec("stat", ["-L", "-c", "", "--", ...paths], { timeoutMs: looksTimeoutMs });
  return failure === undefined;
}

async function makeDirectory(what: string, path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true, mode: missingDirectoryMode });
  } catch (err) {
    const message = `${what}: path on the node does not exist and cannot be made: ${messageOf(err)}`;
    throw new AgentError("Invalid", message, { cause: err });
  }
}
