import { mkdir, realpath, statfs } from "node:fs/promises";
import { join, normalize } from "node:path";
import { AgentError, messageOf } from "../lib/errors.ts";
import { exec } from "../lib/exec.ts";
import type { Logger } from "../lib/log.ts";
import { bindMount, findMountOf, makeRShared } from "../lib/mount.ts";

// linux/magic.h; the file system is mounted exactly where SELinux is on.
const selinuxMagic = 0xf97c_ff8c;
const selinuxMountPoint = "/sys/fs/selinux";
// What container runtimes let containers read and write; plugins share sockets here.
const pluginsLabel = "system_u:object_r:container_file_t:s0";
const labelTimeoutMs = 10_000;

export interface RootOptions {
  /** `podLogsDir`. */
  podLogsDir: string;
  /** Where legacy log links are. */
  containerLogsDir?: string;
  selinuxEnabled: boolean;
  log: Logger;
}

/**
 * Makes the agent's directories with the modes that Kubernetes gives them, and sees to it that mounts made under the root
 * reach the containers that were given it. Idempotent; existing directories keep their modes.
 * Rejects with an `AgentError` that names the directory: the agent cannot start without them.
 */
export async function prepareRoot(rootDir: string, options: RootOptions): Promise<void> {
  const { podLogsDir, containerLogsDir = "/var/log/containers", selinuxEnabled, log } = options;
  if (rootDir !== normalize(rootDir).replace(/(?<=.)\/$/, "") || !rootDir.startsWith("/")) {
    throw new AgentError(
      "Invalid",
      `root directory "${rootDir}" must be an absolute path without "..", "//" or a slash at its end`,
    );
  }
  await makeDir(rootDir, 0o750);
  await makeDir(podLogsDir, 0o750);
  // Before anything is made beneath it: a mount put over the root would hide that.
  await ensureShared(rootDir, log);
  for (const name of ["pods", "plugins", "plugins_registry", "pod-resources"]) {
    await makeDir(join(rootDir, name), 0o750);
  }
  await makeDir(join(rootDir, "checkpoints"), 0o700);
  await makeDir(containerLogsDir, 0o755);
  if (!selinuxEnabled) return;
  for (const name of ["plugins", "plugins_registry"]) {
    const { failure, message } = await exec("chcon", ["--", pluginsLabel, join(rootDir, name)], {
      timeoutMs: labelTimeoutMs,
    });
    if (failure !== undefined) log.warn({ dir: join(rootDir, name), err: message }, "SELinux label not set");
  }
}

/** True if this machine enforces or reports by SELinux. */
export async function isSELinuxEnabled(): Promise<boolean> {
  return statfs(selinuxMountPoint).then(
    ({ type }) => type === selinuxMagic,
    () => false,
  );
}

async function ensureShared(rootDir: string, log: Logger): Promise<void> {
  const mount = await findMountOf(rootDir);
  if (mount?.isShared === true) return;
  log.info({ dir: rootDir }, "root directory is not on a shared mount, making it one");
  // A disk of its own, or what an agent mounted that was killed before the next step, needs no second mount over it.
  if (mount?.mountPoint !== (await realpath(rootDir))) await bindMount(rootDir, rootDir);
  await makeRShared(rootDir);
}

async function makeDir(dir: string, mode: number): Promise<void> {
  try {
    await mkdir(dir, { recursive: true, mode });
  } catch (err) {
    throw new AgentError("Internal", `cannot make directory ${dir}: ${messageOf(err)}`, { cause: err });
  }
}
