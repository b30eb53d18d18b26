import { describe, expect, test } from "vitest";
import { parseCgroupMounts, parseOwnCgroup } from "../../../agent/stats/cgroup-mounts.ts";
import { cpuSpecV2 } from "../../../agent/stats/cgroup-sample.ts";
import { blockDeviceMounts } from "../../../agent/stats/machine-filesystems.ts";
import {
  finiteLimit,
  keyedNumber,
  parseBlkio,
  parseBootTime,
  parseDiskstats,
  parseIOStat,
  parseMaxOpenFiles,
  parseNetDev,
  parseNumber,
  parsePartitions,
  parsePIDs,
  parsePressure,
  parseSwapUsed,
  parseTaskCount,
  parseTopology,
} from "../../../agent/stats/parse.ts";
import { rfc3339, rfc3339OrNull } from "../../../agent/lib/rfc3339.ts";

describe("numbers", () => {
  test.each([
    ["123\n", 123],
    ["max\n", Number.POSITIVE_INFINITY],
    ["9223372036854771712\n", 9223372036854771712],
    ["", undefined],
    ["\n", undefined],
    ["no number\n", undefined],
    [undefined, undefined],
  ])("%j is %s", (text, want) => expect(parseNumber(text)).toBe(want));

  test.each([
    ["v2's word for no limit", Number.POSITIVE_INFINITY, undefined],
    ["v1's number for no limit on pages of 4 KiB", 9223372036854771712, undefined],
    ["the border itself", 2 ** 62, 2 ** 62],
    ["a limit", 1 << 20, 1 << 20],
    ["no file", undefined, undefined],
  ])("%s", (_name, value, want) => expect(finiteLimit(value)).toBe(want));

  const stat = "cache 1\nrss 2\nrss_huge 3\ntotal_rss 4\npgfault 5";
  test.each([
    ["cache", 1],
    ["rss", 2],
    ["total_rss", 4],
    ["pgfault", 5],
    ["huge", undefined],
    ["rs", undefined],
    ["", undefined],
  ])("the value of %j among keys that contain each other", (key, want) => expect(keyedNumber(stat, key)).toBe(want));
});

describe("pressure", () => {
  test("averages in percent, the total in microseconds as the kernel has it", () => {
    const text =
      "some avg10=1.53 avg60=0.84 avg300=0.20 total=1234567\nfull avg10=0.00 avg60=0.25 avg300=0.10 total=765432\n";
    expect(parsePressure(text)).toEqual({
      some: { avg10: 1.53, avg60: 0.84, avg300: 0.2, total: 1_234_567 },
      full: { avg10: 0, avg60: 0.25, avg300: 0.1, total: 765_432 },
    });
  });

  test("kernels before 5.13 have no line for full CPU stalls", () => {
    expect(parsePressure("some avg10=1.00 avg60=0.00 avg300=0.00 total=5\n")).toEqual({
      some: { avg10: 1, avg60: 0, avg300: 0, total: 5 },
      full: { avg10: 0, avg60: 0, avg300: 0, total: 0 },
    });
  });

  test("absent, or switched off at boot", () => {
    expect(parsePressure(undefined)).toBeUndefined();
    expect(parsePressure("")).toBeUndefined();
  });
});

describe("transfers", () => {
  test("v2: devices without transfers and lines of other forms are left out", () => {
    const text = "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n7:0 \nsda rbytes=1\n259:1 rbytes=5\n";
    expect(parseIOStat(text)).toEqual([
      { major: 8, minor: 0, readBytes: 1, writtenBytes: 2, reads: 3, writes: 4 },
      { major: 259, minor: 1, readBytes: 5, writtenBytes: 0, reads: 0, writes: 0 },
    ]);
    expect(parseIOStat(undefined)).toEqual([]);
  });

  test("v1: two files, one device", () => {
    const bytes = "8:0 Read 100\n8:0 Write 200\n8:0 Sync 300\n8:0 Async 0\n8:0 Discard 0\n8:0 Total 300\nTotal 300\n";
    const operations = "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n";
    expect(parseBlkio(bytes, operations)).toEqual([
      { major: 8, minor: 0, readBytes: 100, writtenBytes: 200, reads: 1, writes: 2 },
    ]);
    expect(parseBlkio("Total 0\n", undefined)).toEqual([]);
  });

  test("disks and partitions", () => {
    expect(parsePartitions("major minor  #blocks  name\n\n 254        0  268435456 vda\n 254 1 1 vda1\n")).toEqual(
      new Map([
        ["254:0", "/dev/vda"],
        ["254:1", "/dev/vda1"],
      ]),
    );
    const line = " 254       0 vda 10 1 20 2000 30 2 40 4000 5 6000 7000 0 0 0 0 0 0";
    expect(parseDiskstats(`${line}\n`).get("/dev/vda")).toEqual({
      reads: 10,
      readsMerged: 1,
      sectorsRead: 20,
      readSeconds: 2,
      writes: 30,
      writesMerged: 2,
      sectorsWritten: 40,
      writeSeconds: 4,
      inProgress: 5,
      ioSeconds: 6,
      weightedIOSeconds: 7,
    });
  });
});

test("network: the pod's own interfaces, without loopback and others' ends", () => {
  const text = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    1000      10    0    0    0     0          0         0     1000      10    0    0    0     0       0          0
  eth0:2983044698 100    1    2    0     0          0         0  5134240      50    3    4    0     0       0          0
veth12ab:     1       1    0    0    0     0          0         0        1       1    0    0    0     0       0          0
docker0:      1       1    0    0    0     0          0         0        1       1    0    0    0     0       0          0
nerdctl0:     1       1    0    0    0     0          0         0        1       1    0    0    0     0       0          0
`;
  expect(parseNetDev(text)).toEqual([
    {
      name: "eth0",
      rxBytes: 2_983_044_698,
      rxPackets: 100,
      rxErrors: 1,
      rxDropped: 2,
      txBytes: 5_134_240,
      txPackets: 50,
      txErrors: 3,
      txDropped: 4,
    },
  ]);
  expect(parseNetDev(undefined)).toBeUndefined();
});

test("the machine", () => {
  expect(parseBootTime("cpu 1 2\nbtime 1700000000\nprocesses 5\n")).toBe(1_700_000_000_000);
  expect(parseBootTime("")).toBeUndefined();
  expect(parseTaskCount("6.31 4.61 2.68 2/812 4711\n")).toBe(812);
  expect(parseTaskCount("nonsense")).toBeUndefined();
  expect(parseSwapUsed("MemTotal: 8 kB\nSwapTotal:       2048 kB\nSwapFree:        1024 kB\n")).toBe(1024 * 1024);
  expect(parseSwapUsed(undefined)).toBe(0);
  expect(parsePIDs("12\n0\n7\n")).toEqual([12, 0, 7]);
  expect(parsePIDs("")).toEqual([]);
  expect(
    parseMaxOpenFiles("Limit  Soft Limit  Hard Limit  Units\nMax open files            1024      524288  files\n"),
  ).toBe(1024);
  expect(parseMaxOpenFiles("Max open files            unlimited  unlimited  files\n")).toBe(Number.POSITIVE_INFINITY);
  const cpu = (socket: number, core: number) => `processor : 0\nphysical id\t: ${socket}\ncore id\t\t: ${core}\n`;
  expect(parseTopology([cpu(0, 0), cpu(0, 0), cpu(0, 1), cpu(1, 0)].join("\n"))).toEqual({ sockets: 2, cores: 3 });
  expect(parseTopology("processor : 0\nBogoMIPS : 50\n")).toBeUndefined();
});

describe("where cgroups are", () => {
  const v1 = [
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
    "38 31 0:35 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio",
    "99 31 0:35 / /run/elsewhere/pids rw - cgroup cgroup rw,pids",
  ];
  test("v1, also beside a unified hierarchy", () => {
    const hybrid = [...v1, "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"].join("\n");
    expect(parseCgroupMounts(hybrid, "/sys/fs/cgroup")).toEqual({
      version: 1,
      roots: new Map([
        ["cpu", "/sys/fs/cgroup/cpu,cpuacct"],
        ["cpuacct", "/sys/fs/cgroup/cpu,cpuacct"],
        ["memory", "/sys/fs/cgroup/memory"],
        ["blkio", "/sys/fs/cgroup/blkio"],
      ]),
    });
  });
  test("v2", () => {
    const text = "41 31 0:38 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
    expect(parseCgroupMounts(text, "/sys/fs/cgroup")).toEqual({ version: 2, root: "/sys/fs/cgroup" });
  });
  test("nothing that could be read", () => {
    expect(parseCgroupMounts(v1[2] ?? "", "/sys/fs/cgroup")).toBeUndefined();
  });
  test.each([
    ["v2", "0::/system.slice/kubelet.service\n", 2, "/system.slice/kubelet.service"],
    ["v1", "4:memory:/kubelet\n3:cpu,cpuacct:/kubelet\n0::/\n", 1, "/kubelet"],
    ["v1, accounted in two places", "4:memory:/a\n3:cpu,cpuacct:/b\n", 1, undefined],
    ["unreadable", "", 2, undefined],
  ] as const)("the agent's own: %s", (_name, text, version, want) => {
    expect(parseOwnCgroup(text, version)).toBe(want);
  });
});

test.each([
  ["no quota", "max 100000\n", 39, { shares: 998, periodUs: 100_000 }],
  ["a quota", "20000 100000\n", 1, { shares: 2, periodUs: 100_000, quotaUs: 20_000 }],
  ["all there is", "max 100000\n", 10_000, { shares: 262_144, periodUs: 100_000 }],
  ["a root", undefined, undefined, undefined],
])("v2's CPU limits in v1's words: %s", (_name, max, weight, want) => {
  expect(cpuSpecV2(max, weight)).toEqual(want);
});

test("one mount point of each block device, none of the network", () => {
  const mountinfo = [
    "22 1 254:0 / / rw - ext4 /dev/vda rw",
    "23 1 254:0 /a /var/lib/kubelet/pods/x/volume-subpaths/v/c/0 rw - ext4 /dev/vda rw",
    "24 1 0:50 / /mnt rw - nfs server:/export rw",
    "25 1 0:51 / /run rw - tmpfs tmpfs rw",
    "26 1 254:16 / /data\\040disk rw shared:1 - xfs /dev/vdb rw",
    "27 1 0:52 / /mnt/sshfs rw - fuse /dev/fuse rw",
    "28 1 0:53 / /var/lib/lxcfs rw - fuse.lxcfs lxcfs rw",
    "29 1 8:17 / /mnt/ntfs rw - fuseblk /dev/sdb1 rw",
    "30 1 0:54 / /mnt/named-like-a-disk rw - 9p /dev/vda1 rw",
    "31 1 0:55 / /mnt/btrfs rw - btrfs /dev/sdc rw",
  ].join("\n");
  expect(blockDeviceMounts(mountinfo)).toEqual(
    new Map([
      ["/dev/vda", "/"],
      ["/dev/vdb", "/data disk"],
      ["/dev/sdc", "/mnt/btrfs"],
    ]),
  );
});

test("times are whole seconds, and none is null", () => {
  expect(rfc3339(1_700_000_000_999)).toBe("2023-11-14T22:13:20Z");
  expect(rfc3339OrNull(0)).toBeNull();
  expect(rfc3339OrNull(undefined)).toBeNull();
});
