/** Pure readers of the kernel's texts. What is missing or malformed is undefined, 0 or left out, as each one says. */

/** Pressure stall information: averages in %, `total` in µs. */
export interface Pressure {
  some: PressureLine;
  full: PressureLine;
}

export interface PressureLine {
  avg10: number;
  avg60: number;
  avg300: number;
  total: number;
}

/** Cumulative transfers of one block device. */
export interface DeviceIO {
  major: number;
  minor: number;
  readBytes: number;
  writtenBytes: number;
  reads: number;
  writes: number;
  /** What the cgroup pays for them; only where the kernel's cost model for the device is on. */
  cost?: IOCost;
}

/** Cumulative microseconds of a device's time: used, waited for, and owed for what could not wait. */
export interface IOCost {
  usageUs: number;
  waitUs: number;
  indebtUs: number;
  indelayUs: number;
}

/** Cumulative counters of one network interface. */
export interface InterfaceCounters {
  name: string;
  rxBytes: number;
  rxPackets: number;
  rxErrors: number;
  rxDropped: number;
  txBytes: number;
  txPackets: number;
  txErrors: number;
  txDropped: number;
}

/** A file that holds one number. `max` is Infinity. */
export function parseNumber(text: string | undefined): number | undefined {
  const word = text?.trim();
  if (word === undefined || word === "") return undefined;
  if (word === "max") return Number.POSITIVE_INFINITY;
  const value = Number(word);
  return Number.isNaN(value) ? undefined : value;
}

// The kernel rounds "no limit" to pages, so the largest number is not the only one: 2^62 is the field's border.
const unlimitedAbove = 2 ** 62;

/** A limit in bytes; undefined if there is none. */
export function finiteLimit(value: number | undefined): number | undefined {
  return value === undefined || value > unlimitedAbove ? undefined : value;
}

/** The number behind `key ` in a file of lines `key value`. */
export function keyedNumber(text: string | undefined, key: string): number | undefined {
  if (text === undefined) return undefined;
  const prefix = `${key} `;
  let start = 0;
  if (!text.startsWith(prefix)) {
    const at = text.indexOf(`\n${prefix}`);
    if (at < 0) return undefined;
    start = at + 1;
  }
  const end = text.indexOf("\n", start);
  return parseNumber(text.slice(start + prefix.length, end < 0 ? undefined : end));
}

const noPressure: PressureLine = { avg10: 0, avg60: 0, avg300: 0, total: 0 };

/** What a kernel without PSI is shown with. */
export const zeroPressure: Pressure = { some: noPressure, full: noPressure };

/** `cpu.pressure` and its siblings. Undefined without the file, or while PSI is switched off. */
export function parsePressure(text: string | undefined): Pressure | undefined {
  if (text === undefined || !text.includes("some ")) return undefined;
  return { some: pressureLine(text, "some"), full: pressureLine(text, "full") };
}

function pressureLine(text: string, kind: string): PressureLine {
  const line = text.split("\n").find((one) => one.startsWith(`${kind} `));
  if (line === undefined) return noPressure; // kernels before 5.13 have no "full" for the CPU
  const value = (key: string) => Number(new RegExp(`\\b${key}=([\\d.]+)`).exec(line)?.[1] ?? 0);
  return { avg10: value("avg10"), avg60: value("avg60"), avg300: value("avg300"), total: value("total") };
}

/** cgroup v2 `io.stat`. Devices without a transfer are left out. */
export function parseIOStat(text: string | undefined): DeviceIO[] {
  return linesOf(text).flatMap((line) => {
    const [device = "", ...pairs] = line.split(" ");
    const values = new Map(pairs.map((pair) => pair.split("=") as [string, string]));
    const value = (key: string) => Number(values.get(key) ?? 0);
    const number = deviceNumber(device);
    if (number === undefined || !values.has("rbytes")) return [];
    return [
      {
        ...number,
        readBytes: value("rbytes"),
        writtenBytes: value("wbytes"),
        reads: value("rios"),
        writes: value("wios"),
        ...(values.has("cost.usage") ? { cost: costOf(value) } : {}),
      },
    ];
  });
}

function costOf(value: (key: string) => number): IOCost {
  return {
    usageUs: value("cost.usage"),
    waitUs: value("cost.wait"),
    indebtUs: value("cost.indebt"),
    indelayUs: value("cost.indelay"),
  };
}

/** cgroup v1 `…io_service_bytes` and `…io_serviced`: lines `8:0 Read 4096`. */
export function parseBlkio(bytes: string | undefined, operations: string | undefined): DeviceIO[] {
  const devices = new Map<string, DeviceIO>();
  const read = (text: string | undefined, readField: "readBytes" | "reads", writeField: "writtenBytes" | "writes") => {
    for (const line of linesOf(text)) {
      const [device = "", operation, value] = line.split(" ");
      const number = deviceNumber(device);
      if (number === undefined) continue; // the last line is the total
      const io = devices.get(device) ?? { ...number, readBytes: 0, writtenBytes: 0, reads: 0, writes: 0 };
      devices.set(device, io);
      if (operation === "Read") io[readField] = Number(value);
      if (operation === "Write") io[writeField] = Number(value);
    }
  };
  read(bytes, "readBytes", "writtenBytes");
  read(operations, "reads", "writes");
  return [...devices.values()];
}

function deviceNumber(text: string): { major: number; minor: number } | undefined {
  const [, major, minor] = /^(\d+):(\d+)$/.exec(text) ?? [];
  return major === undefined ? undefined : { major: Number(major), minor: Number(minor) };
}

// Interfaces that are not the pod's or machine's own way out: the reference leaves these out as well.
const foreignInterface = /^(?:lo|veth|docker|nerdctl)/;

/** `/proc/<pid>/net/dev`, without loopback and the host's ends of containers' links. Undefined if it could not be read. */
export function parseNetDev(text: string | undefined): InterfaceCounters[] | undefined {
  if (text === undefined) return undefined;
  return linesOf(text).flatMap((line) => {
    const colon = line.indexOf(":");
    if (colon < 0) return []; // the two lines of headings
    const name = line.slice(0, colon).trim();
    if (foreignInterface.test(name)) return [];
    const values = line
      .slice(colon + 1)
      .trim()
      .split(/\s+/)
      .map(Number);
    const at = (index: number) => values[index] ?? 0;
    return [
      {
        name,
        rxBytes: at(0),
        rxPackets: at(1),
        rxErrors: at(2),
        rxDropped: at(3),
        txBytes: at(8),
        txPackets: at(9),
        txErrors: at(10),
        txDropped: at(11),
      },
    ];
  });
}

/** `cgroup.procs`. Processes of a PID namespace above ours show as 0 and are only counted. */
export function parsePIDs(text: string | undefined): number[] | undefined {
  return text === undefined ? undefined : linesOf(text).map(Number);
}

/** Boot time in Unix ms from `/proc/stat`. */
export function parseBootTime(text: string | undefined): number | undefined {
  const seconds = keyedNumber(text, "btime");
  return seconds === undefined ? undefined : seconds * 1_000;
}

/** Tasks of the whole machine from `/proc/loadavg`: `0.30 0.20 0.10 2/812 4711`. */
export function parseTaskCount(text: string | undefined): number | undefined {
  const count = /^\S+ \S+ \S+ \d+\/(\d+) /.exec(text ?? "")?.[1];
  return count === undefined ? undefined : Number(count);
}

/** Used swap in bytes from `/proc/meminfo`. */
export function parseSwapUsed(meminfo: string | undefined): number {
  const bytes = (key: string) => Number(new RegExp(`^${key}:\\s*(\\d+) kB`, "m").exec(meminfo ?? "")?.[1] ?? 0) * 1_024;
  return Math.max(0, bytes("SwapTotal") - bytes("SwapFree"));
}

/** Names of block devices by `major:minor`, from `/proc/partitions`. */
export function parsePartitions(text: string | undefined): Map<string, string> {
  const names = new Map<string, string>();
  for (const line of linesOf(text)) {
    const [major, minor, , name] = line.trim().split(/\s+/);
    if (name !== undefined && name !== "name") names.set(`${major}:${minor}`, `/dev/${name}`);
  }
  return names;
}

/** Cumulative figures of one block device. Times are seconds. */
export interface DiskCounters {
  reads: number;
  readsMerged: number;
  sectorsRead: number;
  readSeconds: number;
  writes: number;
  writesMerged: number;
  sectorsWritten: number;
  writeSeconds: number;
  inProgress: number;
  ioSeconds: number;
  weightedIOSeconds: number;
}

/** `/proc/diskstats` by device (`/dev/sda`). */
export function parseDiskstats(text: string | undefined): Map<string, DiskCounters> {
  const disks = new Map<string, DiskCounters>();
  for (const line of linesOf(text)) {
    const [, , name, ...rest] = line.trim().split(/\s+/);
    if (name === undefined) continue;
    const at = (index: number) => Number(rest[index] ?? 0);
    disks.set(`/dev/${name}`, {
      reads: at(0),
      readsMerged: at(1),
      sectorsRead: at(2),
      readSeconds: at(3) / 1_000,
      writes: at(4),
      writesMerged: at(5),
      sectorsWritten: at(6),
      writeSeconds: at(7) / 1_000,
      inProgress: at(8),
      ioSeconds: at(9) / 1_000,
      weightedIOSeconds: at(10) / 1_000,
    });
  }
  return disks;
}

/** The soft limit on open files from `/proc/<pid>/limits`; unlimited is Infinity. */
export function parseMaxOpenFiles(text: string | undefined): number | undefined {
  const word = /^Max open files\s+(\S+)/m.exec(text ?? "")?.[1];
  if (word === undefined) return undefined;
  return word === "unlimited" ? Number.POSITIVE_INFINITY : Number(word);
}

/** Sockets and cores of the machine from `/proc/cpuinfo`; undefined where the architecture does not tell. */
export function parseTopology(cpuinfo: string | undefined): { sockets: number; cores: number } | undefined {
  const sockets = new Set<string>();
  const cores = new Set<string>();
  for (const block of (cpuinfo ?? "").split("\n\n")) {
    const socket = /^physical id\s*: (\d+)/m.exec(block)?.[1];
    const core = /^core id\s*: (\d+)/m.exec(block)?.[1];
    if (socket === undefined || core === undefined) continue;
    sockets.add(socket);
    cores.add(`${socket}/${core}`);
  }
  return sockets.size === 0 ? undefined : { sockets: sockets.size, cores: cores.size };
}

function linesOf(text: string | undefined): string[] {
  return text === undefined ? [] : text.split("\n").filter((line) => line !== "");
}
