import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { renderMetrics } from "../../../agent/lib/metrics-text.ts";
import { readDimms } from "../../../agent/stats/dimms.ts";
import { machineFamilies } from "../../../agent/stats/machine-metrics.ts";
import { createFileReader } from "../../../agent/stats/read.ts";

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "dimms-"));
});
afterEach(async () => await rm(dir, { recursive: true }));

async function module(place: string, files: Record<string, string>): Promise<void> {
  await mkdir(join(dir, place), { recursive: true });
  for (const [name, text] of Object.entries(files)) await writeFile(join(dir, place, name), text);
}

const machine = {
  machineID: "m",
  systemUUID: "s",
  bootID: "b",
  cpuCount: 2,
  physicalCores: 2,
  sockets: 1,
  memoryBytes: 1,
  swapBytes: 0,
  kernelVersion: "6.1",
  osImage: "Debian",
};

test("memory modules are counted and summed up by their type", async () => {
  await module("mc0/dimm0", { dimm_mem_type: "Registered-DDR4\n", size: "16384\n" });
  await module("mc0/dimm1", { dimm_mem_type: "Registered-DDR4\n", size: "16384\n" });
  await module("mc1/dimm0", { dimm_mem_type: "Non-volatile-RAM\n", size: "131072\n" });
  await module("mc1/dimm1", { dimm_mem_type: "Empty\n", size: "0\n" }); // a slot with nothing in it
  await module("mc1/csrow0", { dimm_mem_type: "no module", size: "1\n" });
  await module("power", { size: "1\n" });
  const dimms = await readDimms(createFileReader(), dir);
  const shown = [...renderMetrics(machineFamilies({ ...machine, dimms }))].join("");
  const labels = (type: string) => `{boot_id="b",machine_id="m",system_uuid="s",type="${type}"}`;
  expect(shown).toContain(`machine_dimm_count${labels("Registered-DDR4")} 2\n`);
  expect(shown).toContain(`machine_dimm_capacity_bytes${labels("Registered-DDR4")} 3.4359738368e+10\n`);
  expect(shown).toContain(`machine_dimm_count${labels("Non-volatile-RAM")} 1\n`);
  expect(shown).toContain(`machine_dimm_capacity_bytes${labels("Non-volatile-RAM")} 1.37438953472e+11\n`);
  expect(shown).not.toMatch(/Empty|no module/);
});

test("a machine whose kernel does not know them shows none", async () => {
  const dimms = await readDimms(createFileReader(), join(dir, "absent"));
  expect(dimms).toEqual([]);
  expect([...renderMetrics(machineFamilies({ ...machine, dimms }))].join("")).not.toContain("machine_dimm_count");
});
