import { constants } from "node:fs";
import { open, readdir, readlink, rm, stat, symlink, writeFile } from "node:fs/promises";
import { basename, dirname, join, posix } from "node:path";
import { errnoOf, ignoreErrno } from "../lib/errno.ts";
import type { Pod } from "../kube/types.ts";
import type { ContainerStatus, ContainerSummary } from "../runtime/port.ts";
import { parseRecord } from "../server/logs/json-record.ts";
import { annotations } from "./container-annotations.ts";
import { podLogDirName } from "./names.ts";
import type { PodDeps } from "./port.ts";

// A file name of most file systems; ".log" counts.
const linkNameLengthMax = 255;
// kubelet's limits of a termination message: from its file, and from the end of the log.
export const terminationMessageBytesMax = 4096;
export const terminationLogBytesMax = 2048;
export const terminationLogLinesMax = 80;
// Of the log this much is looked at for its last lines: each carries a time stamp and a stream name, and runtimes cut long
// ones into pieces of 16 KiB, of which a whole one has to be in it.
const logTailBytes = 40 * 1024;
// As runtimes have it.
const logFileMode = 0o640;

type LogDeps = Pick<PodDeps, "settings">;

/** Makes the link by which log collectors know the container: `<pod>_<namespace>_<container>-<id>.log`. */
export async function linkLog(pod: Pod, container: string, containerID: string, { settings }: LogDeps): Promise<void> {
  const dir = join(settings.podLogsDir, podLogDirName(pod), container);
  const newest = (await readdir(dir))
    .filter((name) => /^\d+\.log$/.test(name))
    .sort(byNumber)
    .at(-1);
  if (newest === undefined) return;
  const link = join(
    settings.containerLogsDir,
    linkName(pod.metadata.name, pod.metadata.namespace ?? "", container, containerID),
  );
  await symlink(join(dir, newest), link).catch(ignoreErrno("EEXIST"));
}

/**
 * Removes the log files of one container instance, rotated ones too, and its link. Files stay if another instance has the same:
 * one that the runtime made when its creation had been given up, and that was made again.
 *
 * @param others the pod's containers; `status` may be among them
 */
export async function removeLogs(
  status: ContainerStatus,
  others: readonly Pick<ContainerStatus, "id" | "logPath">[],
  { settings }: LogDeps,
): Promise<void> {
  const link = linkName(status.podName, status.podNamespace, status.name, status.id);
  await rm(join(settings.containerLogsDir, link), { force: true });
  if (others.some(({ id, logPath }) => id !== status.id && logPath === status.logPath)) return;
  const dir = dirname(status.logPath);
  if (!dir.startsWith(`${settings.podLogsDir}/`)) return; // not a path that we chose
  const prefix = basename(status.logPath);
  for (const name of await readdir(dir).catch(() => [])) {
    if (name === prefix || name.startsWith(`${prefix}.`)) await rm(join(dir, name), { force: true });
  }
}

/**
 * Removes links into the pods' log directory that lead nowhere any more. Those of containers that have not ended stay: while
 * a log is rotated, its link leads nowhere, too.
 *
 * @param containers all that the runtime has
 */
export async function removeDeadLinks(containers: readonly ContainerSummary[], { settings }: LogDeps): Promise<void> {
  const alive = containers.filter(({ state }) => state !== "exited").map(({ id }) => id);
  for (const name of await readdir(settings.containerLogsDir)) {
    const link = join(settings.containerLogsDir, name);
    // A long name has lost the end of the ID, or all of it.
    const id = /-([^-]*)\.log$/.exec(name)?.[1];
    if (id === undefined || alive.some((one) => one.startsWith(id))) continue;
    const target = await readlink(link).catch(() => ""); // not everything there is a link
    if (!target.startsWith(`${settings.podLogsDir}/`)) continue; // somebody else's
    const isDead = await stat(link).then(
      () => false,
      (err: unknown) => errnoOf(err) === "ENOENT",
    );
    if (isDead) await rm(link, { force: true });
  }
}

/**
 * After the removal of a container whose logs were to stay: where they went with it, as with Docker, an empty one keeps the
 * number from being given again.
 */
export async function keepLogNumber({ logPath }: ContainerStatus, { settings }: LogDeps): Promise<void> {
  if (!logPath.startsWith(`${settings.podLogsDir}/`)) return;
  await writeFile(logPath, "", { flag: "wx", mode: logFileMode }).catch(ignoreErrno("EEXIST", "ENOENT"));
}

function linkName(pod: string, namespace: string, container: string, id: string): string {
  const suffix = ".log";
  return `${`${pod}_${namespace}_${container}-${id}`.slice(0, linkNameLengthMax - suffix.length)}${suffix}`;
}

function byNumber(a: string, b: string): number {
  return Number.parseInt(a, 10) - Number.parseInt(b, 10);
}

/**
 * Last words of an exited container: the file it was given, else with FallbackToLogsOnError the end of its log. What the
 * runtime has to say comes first.
 */
export async function readTerminationMessage(status: ContainerStatus): Promise<string> {
  const target = status.annotations[annotations.terminationMessagePath] ?? "";
  // Mounted below the root, as paths of mounts are; the annotation has it as the pod wrote it.
  const file = status.mounts.find(({ containerPath }) => target !== "" && containerPath === posix.resolve("/", target));
  let text = file === undefined ? "" : await readTail(file.hostPath, terminationMessageBytesMax).catch(() => "");
  const policy = status.annotations[annotations.terminationMessagePolicy];
  if (
    text === "" &&
    policy === "FallbackToLogsOnError" &&
    status.exitCode !== 0 &&
    status.reason !== "ContainerCannotRun"
  ) {
    text = logText(await readTail(status.logPath, logTailBytes).catch(() => ""));
  }
  if (status.message === "") return text;
  return text === "" ? status.message : `${status.message}: ${text}`;
}

// Lines of a CRI log: time, stream, tags, text; of Docker's: an object each. A cut first line is neither and is left out.
function logText(tail: string): string {
  const lines = tail.split("\n").flatMap((line) => {
    const match = /^\S+T\S+ (?:stdout|stderr) ([FP])\S* ?(.*)$/.exec(line);
    if (match === null) return parseRecord(line)?.log ?? [];
    return `${match[2] ?? ""}${match[1] === "P" ? "" : "\n"}`;
  });
  const text = lines.slice(-terminationLogLinesMax).join("");
  return Buffer.from(text, "utf8").subarray(-terminationLogBytesMax).toString("utf8");
}

// What a pod calls its termination log may be a fifo of its own making, which would hold a thread for good.
const openFlags = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY;

async function readTail(path: string, bytesMax: number): Promise<string> {
  const file = await open(path, openFlags);
  try {
    const stats = await file.stat();
    if (!stats.isFile()) return "";
    const { size } = stats;
    const length = Math.min(size, bytesMax);
    const buffer = Buffer.alloc(length);
    const { bytesRead } = await file.read(buffer, 0, length, size - length);
    return buffer.subarray(0, bytesRead).toString("utf8");
  } finally {
    await file.close();
  }
}
