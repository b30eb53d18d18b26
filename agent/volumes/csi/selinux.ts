import { readFile } from "node:fs/promises";
import { allContainers } from "../../kube/pod-resources.ts";
import type { CSIDriver, Pod, SELinuxOptions } from "../../kube/types.ts";
import { AgentError } from "../../lib/errors.ts";
import { type CSIVolume, isSinglePod } from "./volume.ts";

// What runtimes give to files of containers unless a policy's file says otherwise.
const fileContextDefault = "system_u:object_r:container_file_t:s0";

/**
 * The SELinux label with which a volume is to be mounted as a whole, so that nobody has to go through all its files: only
 * where one pod alone can have it, its driver can do it, and the pod says which label. Pure.
 *
 * @param fileContext what the node's policy gives to files of containers
 * @returns undefined: it is mounted without. Rejects with code Invalid if containers disagree.
 */
export function mountContextOf(
  pod: Pod,
  volumeName: string,
  volume: CSIVolume,
  object: CSIDriver | undefined,
  fileContext: string = fileContextDefault,
): string | undefined {
  if (volume.isEphemeral || !isSinglePod(volume) || object?.spec.seLinuxMount !== true) return undefined;
  const { securityContext } = pod.spec;
  if (securityContext?.seLinuxChangePolicy === "Recursive") return undefined;
  const labels = new Set<string | undefined>();
  for (const container of allContainers(pod)) {
    if (container.securityContext?.privileged === true) continue; // sees every label
    if (container.volumeMounts?.some(({ name }) => name === volumeName) !== true) continue;
    labels.add(
      labelOf({ ...securityContext?.seLinuxOptions, ...container.securityContext?.seLinuxOptions }, fileContext),
    );
  }
  const known = [...labels];
  if (known.length > 1) {
    const list = known.map((label) => label ?? "none").join(" and ");
    throw new AgentError("Invalid", `conflicting SELinux labels of volume ${volumeName}: ${list}`);
  }
  return known[0];
}

/** Without a level the runtime makes one up for the pod, and nobody knows it beforehand. */
function labelOf({ user, level }: SELinuxOptions, fileContext: string): string | undefined {
  if (level === undefined || level === "") return undefined;
  const [defaultUser = "", role = "", type = ""] = fileContext.split(":");
  return [user ?? defaultUser, role, type, level].join(":");
}

/** The mount option for a label. */
export function contextOption(label: string): string {
  return `context="${label}"`;
}

/** The context of containers' files by the node's policy, from SELinux's `lxc_contexts`; a usual one if it says none. */
export async function readFileContext(): Promise<string> {
  const policy = /^\s*SELINUXTYPE\s*=\s*(\S+)/m.exec(await readText("/etc/selinux/config"))?.[1] ?? "targeted";
  const contexts = await readText(`/etc/selinux/${policy}/contexts/lxc_contexts`);
  return /^\s*file\s*=\s*"([^"]+)"/m.exec(contexts)?.[1] ?? fileContextDefault;
}

async function readText(path: string): Promise<string> {
  return await readFile(path, "utf8").catch(() => "");
}
