import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";

/** A cgroup's files under v2, as a Linux 6.1 kernel writes them; numbers of interest can be set. */
export interface FakeCgroup {
  usageUs?: number;
  memoryCurrent?: number;
  anon?: number;
  inactiveFile?: number;
  memoryMax?: string;
  swapCurrent?: number;
  swapMax?: string;
  cpuMax?: string;
  cpuWeight?: number;
  oomKills?: number;
  pids?: readonly number[];
}

/** The files by name. */
export function cgroup2Files(values: FakeCgroup = {}): Record<string, string> {
  const {
    usageUs = 20_000_000,
    memoryCurrent = 30 << 20,
    anon = 16 << 20,
    inactiveFile = 4 << 20,
    memoryMax = "max",
    swapCurrent = 0,
    swapMax = "max",
    cpuMax = "max 100000",
    cpuWeight = 39,
    oomKills = 0,
    pids = [],
  } = values;
  return {
    "cpu.stat":
      `usage_usec ${usageUs}\nuser_usec ${Math.round(usageUs * 0.7)}\nsystem_usec ${Math.round(usageUs * 0.3)}\n` +
      "core_sched.force_idle_usec 0\nnr_periods 1200\nnr_throttled 300\nthrottled_usec 4500000\nnr_bursts 2\nburst_usec 7000\n",
    "cpu.max": `${cpuMax}\n`,
    "cpu.weight": `${cpuWeight}\n`,
    "cpu.pressure":
      "some avg10=1.53 avg60=0.84 avg300=0.20 total=1234567\nfull avg10=0.50 avg60=0.25 avg300=0.10 total=765432\n",
    "memory.current": `${memoryCurrent}\n`,
    "memory.stat": memoryStat(anon, inactiveFile),
    "memory.max": `${memoryMax}\n`,
    "memory.high": "max\n",
    "memory.peak": `${memoryCurrent + (1 << 20)}\n`,
    "memory.swap.current": `${swapCurrent}\n`,
    "memory.swap.max": `${swapMax}\n`,
    "memory.events": `low 0\nhigh 0\nmax 12\noom ${oomKills + 1}\noom_kill ${oomKills + 1}\noom_group_kill 0\n`,
    "memory.events.local": `low 0\nhigh 0\nmax 12\noom ${oomKills}\noom_kill ${oomKills}\noom_group_kill 0\n`,
    "memory.pressure":
      "some avg10=0.00 avg60=0.00 avg300=0.01 total=4242\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=2121\n",
    "io.stat":
      "8:0 rbytes=1048576 wbytes=2097152 rios=64 wios=128 dbytes=0 dios=0\n" +
      "259:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n7:0 \n",
    "io.pressure":
      "some avg10=0.10 avg60=0.20 avg300=0.30 total=333\nfull avg10=0.00 avg60=0.10 avg300=0.20 total=222\n",
    "pids.current": `${pids.length + 2}\n`,
    "pids.max": "max\n",
    "cgroup.procs": pids.map((pid) => `${pid}\n`).join(""),
    "cgroup.events": "populated 1\nfrozen 0\n",
  };
}

/** Makes a cgroup's directory with its files. `without` leaves files out, as the root has it. */
export async function writeCgroup2(
  root: string,
  path: string,
  values: FakeCgroup = {},
  without: readonly string[] = [],
): Promise<void> {
  const directory = join(root, path);
  await mkdir(directory, { recursive: true });
  for (const [name, text] of Object.entries(cgroup2Files(values))) {
    if (!without.includes(name)) await writeFile(join(directory, name), text);
  }
}

/** What a root cgroup lacks. */
export const notOnRoot: readonly string[] = [
  "cgroup.events",
  "cpu.max",
  "cpu.weight",
  "memory.current",
  "memory.max",
  "memory.high",
  "memory.peak",
  "memory.swap.current",
  "memory.swap.max",
  "memory.events",
  "memory.events.local",
  "pids.current",
  "pids.max",
];

function memoryStat(anon: number, inactiveFile: number): string {
  const lines: Record<string, number> = {
    anon,
    file: inactiveFile + (6 << 20),
    kernel: 3_145_728,
    kernel_stack: 98_304,
    pagetables: 409_600,
    sec_pagetables: 0,
    percpu: 18_048,
    sock: 4_096,
    vmalloc: 12_288,
    shmem: 0,
    zswap: 0,
    zswapped: 0,
    file_mapped: 2_433_024,
    file_dirty: 0,
    file_writeback: 0,
    swapcached: 0,
    anon_thp: 0,
    file_thp: 0,
    shmem_thp: 0,
    inactive_anon: anon,
    active_anon: 4_096,
    inactive_file: inactiveFile,
    active_file: 6 << 20,
    unevictable: 0,
    slab_reclaimable: 1_402_880,
    slab_unreclaimable: 722_672,
    slab: 2_125_552,
    workingset_refault_anon: 0,
    workingset_refault_file: 12,
    pgscan: 4,
    pgsteal: 4,
    pgfault: 45_678,
    pgmajfault: 12,
    pgrefill: 0,
    pgactivate: 1_024,
    thp_fault_alloc: 0,
  };
  return Object.entries(lines)
    .map(([key, value]) => `${key} ${value}\n`)
    .join("");
}
