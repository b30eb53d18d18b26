import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { describeHardware } from "../../../agent/node/hardware.ts";
import { countCPUs, goArch, parseMeminfo, parseOSImage, readNodeFacts } from "../../../agent/node/facts.ts";

test.each([
  ["0", 1],
  ["0-3\n", 4],
  ["0-1,4,6-7", 5],
  ["", 0],
  ["x-y", 0],
])("the CPU list %j has %i CPUs", (list, count) => expect(countCPUs(list)).toBe(count));

test("memory sizes are bytes", () => {
  const text = "MemTotal:       24684084 kB\nMemFree:  1 kB\nSwapTotal:  1024 kB\n";
  expect(parseMeminfo(text)).toEqual({ totalBytes: 24_684_084 * 1_024, swapBytes: 1 << 20 });
  expect(parseMeminfo("")).toEqual({ totalBytes: 0, swapBytes: 0 });
});

test.each([
  [`NAME="x"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n`, "Debian GNU/Linux 12 (bookworm)"],
  ["PRETTY_NAME='Alpine'", "Alpine"],
  ["PRETTY_NAME=Plain", "Plain"],
  ["NAME=x", "Linux"],
  [undefined, "Unknown"],
])("os-release %j is %s", (text, want) => expect(parseOSImage(text)).toBe(want));

test("architectures in Go's words", () => {
  expect(["x64", "arm64", "ia32", "ppc64", "s390x"].map(goArch)).toEqual(["amd64", "arm64", "386", "ppc64le", "s390x"]);
});

describe("facts of a machine", () => {
  let hostRoot: string;
  const put = async (path: string, text: string) => {
    await mkdir(dirname(join(hostRoot, path)), { recursive: true });
    await writeFile(join(hostRoot, path), text);
  };

  beforeEach(async () => {
    hostRoot = await mkdtemp(join(tmpdir(), "nodelet-facts-"));
    await put("sys/devices/system/cpu/online", "0-1\n");
    await put("proc/meminfo", "MemTotal: 2048 kB\n");
  });
  afterEach(() => rm(hostRoot, { recursive: true }));

  const read = () => readNodeFacts({ rootDir: hostRoot, hostRoot });

  test("a bare one: what it does not tell is empty", async () => {
    expect(await read()).toMatchObject({
      machineID: "",
      systemUUID: "",
      bootID: "",
      osImage: "Unknown",
      cpuCount: 2,
      memoryBytes: 2 << 20,
      swapBytes: 0,
      hugePages: [],
      cpuCFSQuotaSupported: false,
    });
  });

  test("a complete one", async () => {
    await put("var/lib/dbus/machine-id", "abc\n");
    await put("proc/device-tree/vm,uuid", "UUID-1\0");
    await put("proc/sys/kernel/random/boot_id", "boot\n");
    await put("proc/sys/kernel/pid_max", "4194304\n");
    await put("proc/sys/kernel/threads-max", "1000\n");
    await put("usr/lib/os-release", "PRETTY_NAME=Tiny\n");
    await put("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "3\n");
    await put("sys/kernel/mm/hugepages/hugepages-64kB/nr_hugepages", "0\n");
    await put("sys/fs/cgroup/cgroup.controllers", "cpuset cpu memory\n");
    const facts = await read();
    expect(facts).toMatchObject({
      machineID: "abc",
      systemUUID: "UUID-1",
      bootID: "boot",
      osImage: "Tiny",
      pidsMax: 1_000,
      hugePages: [
        { pageBytes: 64 << 10, count: 0 },
        { pageBytes: 2 << 20, count: 3 },
      ],
      cpuCFSQuotaSupported: true,
    });
    expect(facts.rootFilesystemBytes).toBeGreaterThan(0);
  });

  test("without CPUs or memory there is no node", async () => {
    await put("proc/meminfo", "");
    await expect(read()).rejects.toThrow(/MemTotal/);
    await put("sys/devices/system/cpu/online", "");
    await expect(read()).rejects.toThrow(/cannot count CPUs/);
  });

  test("this very machine has all that a node needs", async () => {
    const facts = await readNodeFacts({ rootDir: tmpdir() });
    expect(facts.cpuCount).toBeGreaterThan(0);
    expect(facts.memoryBytes).toBeGreaterThan(1 << 20);
    expect(facts.bootID).toMatch(/^[0-9a-f-]{36}$/);
  });
});

test("the hardware of this machine can be described", async () => {
  expect((await describeHardware()).physicalCores).toBeGreaterThan(0);
});
