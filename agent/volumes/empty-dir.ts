import { constants } from "node:fs";
import { chmod, type FileHandle, lstat, open, statfs } from "node:fs/promises";
import { basename, dirname, join, relative } from "node:path";
import { allContainers, podLimits, qosClass } from "../kube/pod-resources.ts";
import { parseQuantity, quantityValue } from "../kube/quantity.ts";
import type { Pod, Quantity, ResourceList, Volume } from "../kube/types.ts";
import { ignoreErrno } from "../lib/errno.ts";
import { AgentError } from "../lib/errors.ts";
import { mountFilesystem, unmountAllUnder } from "../lib/mount.ts";
import type { VolumeContext, VolumeKind } from "./kind.ts";
import { applyFSGroup } from "./ownership.ts";
import { removeTree } from "./remove-tree.ts";
import { fdPath, openDir, openDirBeneath, partsOf, withDirs } from "./safe-path.ts";
import { pluginDirName } from "./pod-paths.ts";

const pluginName = "kubernetes.io/empty-dir";

// statfs magic numbers of linux/magic.h.
export const tmpfsMagic = 0x0102_1994;
export const hugetlbfsMagic = 0x9584_58f6;

const volumeMode = 0o777;
const pluginDirMode = 0o755;
const markerDirMode = 0o750;
const absentAsUndefined = ignoreErrno("ENOENT", "ENOTDIR");

/** Scratch space of a pod: a directory on the node's disk, in memory, or of huge pages. */
export const emptyDirKind: VolumeKind = {
  field: "emptyDir",
  pluginName,
  isReadOnly: false,
  isRelabelled: true,
  isRefreshed: false,
  async setUp(context) {
    const { medium = "", sizeLimit } = context.volume.emptyDir ?? {};
    await setUpScratch(context, context.volume.name, { medium, sizeLimit, ownedByFSGroup: true });
    return { hostPath: context.dir };
  },
};

/**
 * The directory below a configMap, secret, downwardAPI or projected volume: as an emptyDir, but marked as wrapped and
 * given to the fsGroup only together with its content.
 */
export async function setUpWrapped(context: VolumeContext, medium: "" | "Memory"): Promise<void> {
  const { volume } = context;
  await setUpScratch(context, wrappedName(volume), { medium, sizeLimit: undefined, ownedByFSGroup: false });
}

/** Undoes {@link setUpWrapped}. Rejects while something in the directory is in use. */
export async function tearDownWrapped({ podDir, dir, volume }: VolumeContext): Promise<void> {
  await removeTree(markerDirOf(podDir, wrappedName(volume))); // first: what is half gone must not count as ready
  await unmountAllUnder(dir);
  await removeTree(dir);
}

/** Size in bytes of a tmpfs: the smallest of what the node has, what the pod may use, and `sizeLimit`; 0: no limit known. */
export function memoryVolumeBytes(pod: Pod, sizeLimit: Quantity | undefined, nodeAllocatable: ResourceList): number {
  const candidates = [quantityValue(nodeAllocatable.memory), podMemoryLimit(pod), quantityValue(sizeLimit)];
  const positive = candidates.filter((bytes) => bytes > 0);
  return positive.length === 0 ? 0 : Math.min(...positive);
}

/**
 * Page size of a HugePages volume, as a quantity. Rejects with code Invalid if the medium names a size that no container
 * asks for, or names none and the containers do not ask for exactly one.
 */
export function hugePageSize(pod: Pod, medium: string): string {
  const lists = [pod.spec.resources?.requests, pod.spec.resources?.limits];
  for (const { resources } of allContainers(pod)) lists.push(resources?.requests, resources?.limits);
  const names = lists.flatMap((list) => Object.keys(list ?? {}));
  const sizes = new Map<bigint, string>();
  for (const name of names) {
    const size = /^hugepages-(.+)$/.exec(name)?.[1];
    const bytes = size === undefined ? undefined : parseQuantity(size);
    if (size !== undefined && bytes !== undefined) sizes.set(bytes, size);
  }
  if (medium === "HugePages") {
    const [only, ...others] = sizes.values();
    if (only === undefined) throw new AgentError("Invalid", "medium HugePages: no container requests hugepages-<size>");
    if (others.length === 0) return only;
    throw new AgentError("Invalid", "medium HugePages: containers request several page sizes, write HugePages-<size>");
  }
  const size = medium.slice("HugePages-".length);
  const bytes = parseQuantity(size);
  if (bytes !== undefined && sizes.has(bytes)) return size;
  throw new AgentError("Invalid", `medium ${medium}: no container requests hugepages-${size}`);
}

interface Scratch {
  medium: string;
  sizeLimit: Quantity | undefined;
  ownedByFSGroup: boolean;
}

async function setUpScratch(context: VolumeContext, markerName: string, scratch: Scratch): Promise<void> {
  const { podDir, dir, pod } = context;
  const mount = mountOfMedium(context, scratch);
  // Says that set-up once went through: what a container has put there since must not be touched again.
  const markerDir = markerDirOf(podDir, markerName);
  const marker = join(markerDir, "ready");
  if (await exists(marker)) {
    if (mount === undefined ? await exists(dir) : await isMounted(dir, mount)) return;
    await removeTree(markerDir); // left by the machine's last run, the volume is not
  }
  await withDirsIn(podDir, dirname(dir), pluginDirMode, async (parent) => {
    await withDirs(parent, [basename(dir)], { mode: volumeMode }, async (own) => {
      // A run that was killed may have mounted it. The root of a tmpfs has a mode of its own, with the sticky bit.
      if (mount !== undefined && (await isMounted(dir, mount))) return;
      await chmod(fdPath(own), volumeMode); // that run may have left it with another mode
      if (mount !== undefined) await mountScratch(context, mount);
    });
  });
  const { fsGroup } = pod.spec.securityContext ?? {};
  if (scratch.ownedByFSGroup && fsGroup !== undefined) {
    const own = await openDirBeneath(podDir, relative(podDir, dir)); // by now what is mounted there
    try {
      await applyFSGroup(own, fsGroup, { isReadOnly: false });
    } finally {
      await own.close();
    }
  }
  await withDirsIn(podDir, markerDir, markerDirMode, async (made) => {
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_NOFOLLOW;
    await (await open(`${fdPath(made)}/ready`, flags, 0o644)).close();
  });
}

/** As {@link withDirs}, from the pod's directory down: a link on the way leads nowhere. */
async function withDirsIn(
  podDir: string,
  path: string,
  mode: number,
  use: (dir: FileHandle) => Promise<void>,
): Promise<void> {
  const base = await openDir(podDir);
  try {
    await withDirs(base, partsOf(relative(podDir, path)), { mode }, use);
  } finally {
    await base.close();
  }
}

function wrappedName({ name }: Volume): string {
  return `wrapped_${name}`;
}

function markerDirOf(podDir: string, markerName: string): string {
  return join(podDir, "plugins", pluginDirName(pluginName), markerName);
}

/** What is mounted for a medium. */
type ScratchMount = { type: "tmpfs"; bytes: number } | { type: "hugetlbfs"; pageSize: string };

/** Undefined for the node's disk. Rejects with Invalid for media that there are not, or not for this pod. */
function mountOfMedium({ pod, deps }: VolumeContext, scratch: Scratch): ScratchMount | undefined {
  const { medium, sizeLimit } = scratch;
  if (medium === "") return undefined;
  if (medium === "Memory") return { type: "tmpfs", bytes: memoryVolumeBytes(pod, sizeLimit, deps.nodeAllocatable()) };
  if (medium === "HugePages" || medium.startsWith("HugePages-")) {
    return { type: "hugetlbfs", pageSize: hugePageSize(pod, medium) };
  }
  throw new AgentError("Invalid", `unknown storage medium "${medium}", use "", Memory, HugePages or HugePages-<size>`);
}

async function mountScratch({ deps, dir, signal }: VolumeContext, mount: ScratchMount): Promise<void> {
  if (mount.type === "hugetlbfs") {
    const options = [`pagesize=${mount.pageSize}`];
    return mountFilesystem({ type: "hugetlbfs", source: "nodev", target: dir, options }, signal);
  }
  const options = mount.bytes > 0 ? [`size=${mount.bytes}`] : [];
  if (await deps.tmpfsTakesNoswap()) options.push("noswap");
  await deps.tmpfs.mount(dir, options, signal);
}

/**
 * True if `dir` is the root of such a file system of its own: another device than its parent. Rejects with Invalid if it
 * has huge pages of another size.
 */
async function isMounted(dir: string, mount: ScratchMount): Promise<boolean> {
  const [own, parent] = await Promise.all([dir, dirname(dir)].map((path) => lstat(path).catch(absentAsUndefined)));
  if (own === undefined || parent === undefined || own.dev === parent.dev) return false;
  const { type, bsize } = await statfs(dir);
  if (mount.type === "tmpfs") return type === tmpfsMagic;
  if (type !== hugetlbfsMagic) return false;
  if (bsize === quantityValue(mount.pageSize)) return true;
  throw new AgentError("Invalid", `is mounted with huge pages of ${bsize} bytes, not of ${mount.pageSize}`);
}

/** Only where the pod's cgroup has a memory limit: Guaranteed pods, and those of which every container is limited. */
function podMemoryLimit(pod: Pod): number {
  const containers = [...(pod.spec.initContainers ?? []), ...pod.spec.containers];
  const isLimited =
    qosClass(pod) === "Guaranteed" ||
    quantityValue(pod.spec.resources?.limits?.memory) > 0 ||
    containers.every(({ resources }) => quantityValue(resources?.limits?.memory) > 0);
  return isLimited ? (podLimits(pod).memory ?? 0) : 0;
}

async function exists(path: string): Promise<boolean> {
  return (await lstat(path).catch(absentAsUndefined)) !== undefined;
}
