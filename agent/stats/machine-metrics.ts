import type { MetricFamily, Sample } from "../lib/metrics.ts";
import type { Dimms } from "./dimms.ts";

/** What the machine is. */
export interface Machine {
  machineID: string;
  systemUUID: string;
  bootID: string;
  cpuCount: number;
  physicalCores: number;
  sockets: number;
  memoryBytes: number;
  swapBytes: number;
  dimms: readonly Dimms[];
  kernelVersion: string;
  osImage: string;
}

/** The `machine_*` families and the version's. */
export function machineFamilies(machine: Machine): MetricFamily[] {
  const labels = { boot_id: machine.bootID, machine_id: machine.machineID, system_uuid: machine.systemUUID };
  const gauge = (name: string, help: string, samples: Sample[]): MetricFamily => ({
    name,
    help,
    type: "gauge",
    samples,
  });
  const figure = (name: string, help: string, value: number) => gauge(name, help, [{ labels, value }]);
  const ofDimms = (name: string, help: string, figureOf: (dimms: Dimms) => number) =>
    gauge(
      name,
      help,
      machine.dimms.map((dimms) => ({ labels: { ...labels, type: dimms.type }, value: figureOf(dimms) })),
    );
  return [
    gauge("cadvisor_version_info", "Kernel and operating system that the figures come from", [
      {
        labels: {
          cadvisorRevision: "",
          cadvisorVersion: "",
          dockerVersion: "",
          kernelVersion: machine.kernelVersion,
          osVersion: machine.osImage,
        },
        value: 1,
      },
    ]),
    figure("machine_cpu_books", "Books of CPUs, which only mainframes have", 0),
    figure("machine_cpu_cores", "Logical CPUs", machine.cpuCount),
    figure("machine_cpu_drawers", "Drawers of CPUs, which only mainframes have", 0),
    figure("machine_cpu_physical_cores", "CPU cores", machine.physicalCores),
    figure("machine_cpu_sockets", "CPU sockets", machine.sockets),
    ofDimms("machine_dimm_capacity_bytes", "Capacity of memory modules in bytes, by their type", ({ bytes }) => bytes),
    ofDimms("machine_dimm_count", "Memory modules, by their type", ({ count }) => count),
    figure("machine_memory_bytes", "Memory in bytes", machine.memoryBytes),
    figure("machine_nvm_avg_power_budget_watts", "Not measured: always 0", 0),
    gauge(
      "machine_nvm_capacity",
      "Not measured: always 0",
      ["app_direct_mode", "memory_mode"].map((mode) => {
        const { boot_id, machine_id, system_uuid } = labels;
        return { labels: { boot_id, machine_id, mode, system_uuid }, value: 0 };
      }),
    ),
    figure("machine_swap_bytes", "Swap in bytes", machine.swapBytes),
  ];
}
