import { access } from "node:fs/promises";
import type { Clock } from "../lib/clock.ts";
import { AgentError } from "../lib/errors.ts";
import { type ExecResult, exec } from "../lib/exec.ts";
import { type CgroupValues, sharesToWeight } from "./cgroup-values.ts";

// How long systemd may take to make a slice: the limit of libcontainer, which the reference uses.
const sliceTimeoutMs = 30_000;
// First look for the slice's directory, doubling; systemd makes it within a few milliseconds of its answer.
const sliceLookMs = { first: 2, max: 100 };
// systemd counts CPU quota in steps of 10 ms per second.
const quotaStepUs = 10_000;
const versionWithQuotaPeriod = 242;
const versionWithAllowedCPUs = 244;
const bootedMark = "/run/systemd/system";

/** A D-Bus property as busctl takes it: name, signature, values. */
type Property = readonly [name: string, signature: string, ...values: string[]];

/** Slices of a running systemd, by way of `busctl`. */
export interface SliceManager {
  /** Makes the slice, or changes it if it is there. Resolves when `exists` says that its cgroup is. */
  start(slice: string, parent: string | undefined, values: CgroupValues, exists: () => Promise<boolean>): Promise<void>;
  /** Changes limits of a slice; they last until reboot. */
  set(slice: string, values: CgroupValues): Promise<void>;
  stop(slice: string): Promise<void>;
}

export interface SliceManagerDeps {
  clock: Clock;
  /** Replaced by tests. */
  run?: (file: string, args: readonly string[]) => Promise<ExecResult>;
  isBooted?: () => Promise<boolean>;
}

/** Connects to systemd. Rejects with Unavailable where systemd is not the init, or `busctl` is missing. */
export async function createSliceManager(deps: SliceManagerDeps): Promise<SliceManager> {
  const { clock, run = runTool, isBooted = isSystemdInit } = deps;
  if (!(await isBooted())) {
    throw new AgentError(
      "Unavailable",
      `cgroupDriver systemd: systemd does not run here (no ${bootedMark}); use cgroupfs for the agent and the runtime`,
    );
  }
  const answer = await run("busctl", ["--version"]);
  const version = Number(/^systemd (\d+)/.exec(answer.stdout)?.[1]);
  if (answer.failure !== undefined || Number.isNaN(version)) {
    throw new AgentError(
      "Unavailable",
      `cgroupDriver systemd: ${answer.message}; install systemd's busctl, or use cgroupfs`,
    );
  }

  const call = async (method: string, signature: string, args: readonly string[]): Promise<ExecResult> =>
    run("busctl", [
      "--system",
      "call",
      "org.freedesktop.systemd1",
      "/org/freedesktop/systemd1",
      "org.freedesktop.systemd1.Manager",
      method,
      signature,
      ...args,
    ]);

  const set = async (slice: string, values: CgroupValues): Promise<void> => {
    const properties = limitProperties(values, version);
    if (properties.length === 0) return;
    const result = await call("SetUnitProperties", "sba(sv)", [slice, "true", ...flatten(properties)]);
    if (result.failure !== undefined) throw failed(`set limits of slice ${slice}`, result);
  };

  return {
    start: async (slice, parent, values, exists) => {
      const properties = [...unitProperties(slice, parent), ...limitProperties(values, version)];
      const args = [slice, "replace", ...flatten(properties), "0"];
      const result = await call("StartTransientUnit", "ssa(sv)a(sa(sv))", args);
      if (result.failure !== undefined) {
        if (!/already (exists|loaded)|UnitExists/.test(result.stderr)) throw failed(`start slice ${slice}`, result);
        await set(slice, values);
      }
      const deadline = clock.monotonic() + sliceTimeoutMs;
      for (let waitMs = sliceLookMs.first; !(await exists()); waitMs = Math.min(waitMs * 2, sliceLookMs.max)) {
        if (clock.monotonic() >= deadline) {
          throw new AgentError(
            "DeadlineExceeded",
            `slice ${slice} has no cgroup ${sliceTimeoutMs / 1000} s after its start`,
          );
        }
        await clock.sleep(waitMs);
      }
    },
    set,
    stop: async (slice) => {
      const result = await call("StopUnit", "ss", [slice, "replace"]);
      if (result.failure !== undefined && !/not loaded|NoSuchUnit/.test(result.stderr)) {
        throw failed(`stop slice ${slice}`, result);
      }
    },
  };
}

/** systemd's properties for our limits. Pure; `version` is systemd's. */
export function limitProperties(values: CgroupValues, version: number): Property[] {
  const properties: Property[] = [];
  if (values.memoryBytes !== undefined) properties.push(["MemoryMax", "t", String(values.memoryBytes)]);
  if (values.cpuShares !== undefined) properties.push(["CPUWeight", "t", String(sharesToWeight(values.cpuShares))]);
  if (values.cpuQuotaUs !== undefined && values.cpuQuotaUs > 0) {
    const periodUs = values.cpuPeriodUs ?? 100_000;
    const perSecond = Math.ceil((values.cpuQuotaUs * 1_000_000) / periodUs / quotaStepUs) * quotaStepUs;
    properties.push(["CPUQuotaPerSecUSec", "t", String(perSecond)]);
    if (version >= versionWithQuotaPeriod) properties.push(["CPUQuotaPeriodUSec", "t", String(periodUs)]);
  }
  // 0 would mean "systemd's default".
  if (values.pids !== undefined) properties.push(["TasksMax", "t", String(Math.max(1, values.pids))]);
  if (values.cpus !== undefined && version >= versionWithAllowedCPUs) {
    const mask = cpuMask(values.cpus);
    properties.push(["AllowedCPUs", "ay", String(mask.length), ...mask.map(String)]);
  }
  return properties;
}

/** A kernel CPU list as systemd's bit mask, lowest byte first. */
export function cpuMask(list: string): number[] {
  const mask: number[] = [];
  for (const range of list.split(",")) {
    const [first = "", last = first] = range.trim().split("-");
    if (first === "") continue;
    for (let cpu = Number(first); cpu <= Number(last); cpu += 1) {
      const byte = Math.floor(cpu / 8);
      while (mask.length <= byte) mask.push(0);
      mask[byte] = (mask[byte] ?? 0) | (1 << (cpu % 8));
    }
  }
  return mask;
}

function unitProperties(slice: string, parent: string | undefined): Property[] {
  return [
    ["Description", "s", `Kubernetes pods cgroup ${slice}`],
    ...(parent === undefined ? [] : [["Wants", "as", "1", parent] as const]),
    ["DefaultDependencies", "b", "false"],
    ["MemoryAccounting", "b", "true"],
    ["CPUAccounting", "b", "true"],
    ["IOAccounting", "b", "true"],
    ["TasksAccounting", "b", "true"],
  ];
}

function flatten(properties: readonly Property[]): string[] {
  return [String(properties.length), ...properties.flat()];
}

function failed(what: string, result: ExecResult): AgentError {
  return new AgentError(
    result.failure === "timeout" ? "DeadlineExceeded" : "Internal",
    `cannot ${what}: ${result.message}`,
  );
}

async function isSystemdInit(): Promise<boolean> {
  return access(bootedMark).then(
    () => true,
    () => false,
  );
}

async function runTool(file: string, args: readonly string[]): Promise<ExecResult> {
  return exec(file, args, { timeoutMs: sliceTimeoutMs });
}
