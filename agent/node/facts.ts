import { readdir, readFile, statfs } from "node:fs/promises";
import { arch, release } from "node:os";
import { join } from "node:path";

/** What does not change while the agent runs: read once at start, as the reference does (hot-plug needs a restart). */
export interface NodeFacts {
  machineID: string;
  systemUUID: string;
  bootID: string;
  kernelVersion: string;
  osImage: string;
  /** GOARCH word: `amd64`, `arm64`, … */
  architecture: string;
  /** Online logical CPUs. */
  cpuCount: number;
  memoryBytes: number;
  swapBytes: number;
  hugePages: HugePages[];
  /** Capacity of the filesystem that holds the root directory. */
  rootFilesystemBytes: number;
  /** Most process IDs that the kernel hands out. */
  pidsMax: number;
  /** False where the kernel has no CFS bandwidth control, so that CPU limits do nothing. */
  cpuCFSQuotaSupported: boolean;
  /** The kernel confines processes by AppArmor profiles. */
  isAppArmorEnabled: boolean;
}

/** Huge pages of one size, reserved on the whole machine. */
export interface HugePages {
  pageBytes: number;
  count: number;
}

export interface FactSources {
  /** The agent's root directory; it must exist. */
  rootDir: string;
  /** Where / of the host is seen; "/" unless a test says otherwise. */
  hostRoot?: string;
}

/**
 * Reads the facts. What a machine does not tell (no DMI in many virtual machines) is "".
 * Rejects if CPUs, memory or the filesystem of `rootDir` cannot be read: without them there is no node.
 */
export async function readNodeFacts({ rootDir, hostRoot = "/" }: FactSources): Promise<NodeFacts> {
  const read = (path: string) => readText(join(hostRoot, path));
  const [online, meminfo, osRelease, usrOSRelease, bootID] = await Promise.all([
    read("sys/devices/system/cpu/online"),
    read("proc/meminfo"),
    read("etc/os-release"),
    read("usr/lib/os-release"),
    read("proc/sys/kernel/random/boot_id"),
  ]);
  const memory = parseMeminfo(meminfo ?? "");
  const cpuCount = countCPUs(online ?? "");
  if (cpuCount === 0) throw new Error("cannot count CPUs: /sys/devices/system/cpu/online is missing or empty");
  if (memory.totalBytes === 0) throw new Error("cannot read the memory size: /proc/meminfo has no MemTotal line");
  const [pidMax, threadsMax] = await Promise.all([
    read("proc/sys/kernel/pid_max"),
    read("proc/sys/kernel/threads-max"),
  ]);
  const filesystem = await statfs(rootDir);
  return {
    machineID: (await firstOf(read, ["etc/machine-id", "var/lib/dbus/machine-id"])) ?? "",
    systemUUID: (await firstOf(read, systemUUIDFiles())) ?? "",
    bootID: bootID?.trim() ?? "",
    kernelVersion: release(),
    osImage: parseOSImage(osRelease ?? usrOSRelease),
    architecture: goArch(arch()),
    cpuCount,
    memoryBytes: memory.totalBytes,
    swapBytes: memory.swapBytes,
    hugePages: await readHugePages(join(hostRoot, "sys/kernel/mm/hugepages")),
    rootFilesystemBytes: filesystem.blocks * filesystem.bsize,
    pidsMax: Math.min(...[pidMax, threadsMax].map((text) => Number(text ?? Number.NaN) || defaultPidsMax)),
    cpuCFSQuotaSupported: await isCFSQuotaSupported(read),
    isAppArmorEnabled: (await read("sys/module/apparmor/parameters/enabled"))?.trim() === "Y",
  };
}

// The kernel's own pid_max on 64-bit machines, for when /proc hides it.
const defaultPidsMax = 4_194_304;

/** CPUs in a kernel list such as `0-3,8,10-11`. */
export function countCPUs(list: string): number {
  let count = 0;
  for (const range of list.trim().split(",")) {
    const [first = "", last = first] = range.split("-");
    if (first !== "") count += Number(last) - Number(first) + 1;
  }
  return Number.isFinite(count) ? count : 0;
}

/** MemTotal and SwapTotal of /proc/meminfo, 0 where absent. */
export function parseMeminfo(text: string): { totalBytes: number; swapBytes: number } {
  const bytesOf = (key: string) => Number(new RegExp(`^${key}:\\s*(\\d+) kB`, "m").exec(text)?.[1] ?? 0) * 1024;
  return { totalBytes: bytesOf("MemTotal"), swapBytes: bytesOf("SwapTotal") };
}

/** PRETTY_NAME of an os-release file; `Linux` if the file has none, `Unknown` if there is no file. */
export function parseOSImage(osRelease: string | undefined): string {
  if (osRelease === undefined) return "Unknown";
  const value = /^PRETTY_NAME=(.*)$/m.exec(osRelease)?.[1]?.trim();
  if (value === undefined || value === "") return "Linux";
  return value.replace(/^(["'])(.*)\1$/, "$2");
}

const goArchs: Partial<Record<string, string>> = { x64: "amd64", ia32: "386", ppc64: "ppc64le", mipsel: "mipsle" };

/** Go's word for one of Node's architectures, as Kubernetes uses it in labels and images. */
export function goArch(nodeArch: string): string {
  return goArchs[nodeArch] ?? nodeArch;
}

function systemUUIDFiles(): string[] {
  const files = ["sys/class/dmi/id/product_uuid", "proc/device-tree/system-id", "proc/device-tree/vm,uuid"];
  // IBM Z has neither DMI nor a device tree.
  return arch() === "s390x" ? [...files, "etc/machine-id"] : files;
}

async function readHugePages(directory: string): Promise<HugePages[]> {
  const names = await readdir(directory).catch(() => []);
  const sizes = names.flatMap((name) => {
    const kilobytes = /^hugepages-(\d+)kB$/.exec(name)?.[1];
    return kilobytes === undefined ? [] : [{ name, pageBytes: Number(kilobytes) * 1024 }];
  });
  const pages = sizes.map(async ({ name, pageBytes }) => {
    const count = Number((await readText(join(directory, name, "nr_hugepages"))) ?? 0);
    return { pageBytes, count: Number.isFinite(count) ? count : 0 };
  });
  return (await Promise.all(pages)).sort((a, b) => a.pageBytes - b.pageBytes);
}

async function isCFSQuotaSupported(read: (path: string) => Promise<string | undefined>): Promise<boolean> {
  const v1 = await firstOf(read, ["sys/fs/cgroup/cpu/cpu.cfs_quota_us", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us"]);
  if (v1 !== undefined) return true;
  return (await read("sys/fs/cgroup/cgroup.controllers"))?.split(/\s+/).includes("cpu") ?? false;
}

async function firstOf(
  read: (path: string) => Promise<string | undefined>,
  paths: readonly string[],
): Promise<string | undefined> {
  for (const path of paths) {
    // Device-tree strings end in NUL.
    const text = (await read(path))?.replaceAll("\0", "").trim();
    if (text !== undefined && text !== "") return text;
  }
  return undefined;
}

async function readText(path: string): Promise<string | undefined> {
  return readFile(path, "utf8").catch(() => undefined);
}
