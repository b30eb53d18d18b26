import { randomBytes } from "node:crypto";
import { constants } from "node:fs";
import { chmod, mkdir, open, readFile, unlink } from "node:fs/promises";
import { dirname, join, posix } from "node:path";
import { uidOf } from "../kube/pod-resources.ts";
import type { Container, Pod } from "../kube/types.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import type { Mount } from "../runtime/port.ts";
import { needsHostsFile, type PodHostname, renderHostNetworkHosts, renderHosts } from "./hosts.ts";

/** Files of the node that a container is given beside its volumes: /etc/hosts and its termination log. */

export interface ContainerFilesOptions {
  /** kubelet's root directory. */
  rootDir: string;
  selinuxEnabled: boolean;
}

const hostsMode = 0o644;
const nodeHostsFile = "/etc/hosts";
// Whoever runs in the container may leave its last words.
const terminationLogMode = 0o666;

/**
 * Writes the pod's hosts file anew and mounts it; no mount if the container gets none.
 * Rejects if the node's own file cannot be read or the pod's not be written.
 */
export async function hostsMount(
  pod: Pod,
  container: Container,
  names: { podIPs: readonly string[]; hostname: PodHostname },
  { rootDir, selinuxEnabled }: ContainerFilesOptions,
): Promise<Mount[]> {
  const { podIPs, hostname } = names;
  if (!needsHostsFile(pod, container, podIPs)) return [];
  const path = join(rootDir, "pods", uidOf(pod), "etc-hosts");
  const text =
    pod.spec.hostNetwork === true
      ? renderHostNetworkHosts(pod, await readFile(nodeHostsFile, "utf8"))
      : renderHosts(pod, podIPs, hostname);
  await overwrite(path, text);
  return [bind(path, "/etc/hosts", selinuxEnabled)];
}

/**
 * In place: containers that run have this very file mounted and are to see the change. It is cut after it was written, so
 * that they never find it empty. What it held is not read: a container may have put anything into it, of any size.
 */
async function overwrite(path: string, text: string): Promise<void> {
  const { O_WRONLY, O_CREAT, O_NOFOLLOW } = constants;
  const file = await open(path, O_WRONLY | O_CREAT | O_NOFOLLOW, hostsMode);
  try {
    const bytes = Buffer.from(text);
    for (let done = 0; done < bytes.length; ) {
      const { bytesWritten } = await file.write(bytes, done, bytes.length - done, done);
      done += bytesWritten;
    }
    await file.truncate(bytes.length);
    await file.chmod(hostsMode); // whatever the umask, or somebody in a container, made of it
  } finally {
    await file.close();
  }
}

/**
 * An empty file for the last words of one instance of a container, mounted at its `terminationMessagePath`. Without such a
 * path there is none; nor if it cannot be made, as a container can do without.
 */
export async function terminationLogMount(
  pod: Pod,
  container: Container,
  { rootDir, selinuxEnabled }: ContainerFilesOptions,
  log: Logger,
): Promise<Mount[]> {
  const target = container.terminationMessagePath ?? "";
  if (target === "") return [];
  const dir = terminationLogDir(rootDir, pod, container);
  const path = join(dir, randomBytes(4).toString("hex"));
  try {
    await mkdir(dir, { recursive: true, mode: 0o750 });
    const file = await open(path, "wx", terminationLogMode);
    await file.close();
    await chmod(path, terminationLogMode); // whatever the umask
  } catch (err) {
    log.warn(
      { podUID: uidOf(pod), container: container.name, err: messageOf(err) },
      "termination log not made, the container starts without",
    );
    return [];
  }
  return [bind(path, posix.resolve("/", target), selinuxEnabled)];
}

/**
 * Takes back the file that {@link terminationLogMount} has made, for a container that came to nothing. A container that fails
 * each time would fill its pod's directory with them. Never rejects: what stays goes with the pod.
 */
export async function removeTerminationLog(
  pod: Pod,
  container: Container,
  mounts: readonly Mount[],
  { rootDir }: Pick<ContainerFilesOptions, "rootDir">,
): Promise<void> {
  const dir = terminationLogDir(rootDir, pod, container);
  const made = mounts.find(({ hostPath }) => dirname(hostPath) === dir);
  if (made !== undefined) await unlink(made.hostPath).catch(() => {});
}

function terminationLogDir(rootDir: string, pod: Pod, { name }: Container): string {
  return join(rootDir, "pods", uidOf(pod), "containers", name);
}

function bind(hostPath: string, containerPath: string, selinuxRelabel: boolean): Mount {
  return { hostPath, containerPath, readonly: false, selinuxRelabel, propagation: "PRIVATE", recursiveReadOnly: false };
}
