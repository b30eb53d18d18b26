import type { Clock } from "../lib/clock.ts";
import { AgentError, hasCode, messageOf } from "../lib/errors.ts";
import { isThere } from "../lib/is-there.ts";
import { type CgroupValues, sharesToWeight } from "./cgroup-values.ts";
import { connectDBus, type DBus, type DBusCall, DBusError } from "./dbus.ts";
import { type DBusValue, textOf, Variant } from "./dbus-wire.ts";

// How long systemd may take to make a slice: the limit of libcontainer, which the reference uses.
const sliceTimeoutMs = 30_000;
// First look for the slice's directory, doubling; systemd makes it within a few milliseconds of its answer.
const sliceLookMs = { first: 2, max: 100 };
// systemd counts CPU quota in steps of 10 ms per second.
const quotaStepUs = 10_000;
const versionWithQuotaPeriod = 242;
const versionWithAllowedCPUs = 244;
const bootedMark = "/run/systemd/system";
const busSocket = "/run/dbus/system_bus_socket";
const manager = {
  destination: "org.freedesktop.systemd1",
  path: "/org/freedesktop/systemd1",
  interface: "org.freedesktop.systemd1.Manager",
};

/** A unit property: name and typed value. */
type Property = readonly [name: string, value: Variant];

/** Slices of a running systemd. */
export interface SliceManager {
  /** Makes the slice, or changes it if it is there. Resolves when `exists` says that its cgroup is. */
  start(slice: string, parent: string | undefined, values: CgroupValues, exists: () => Promise<boolean>): Promise<void>;
  /** Changes limits of a slice; they last until reboot. */
  set(slice: string, values: CgroupValues): Promise<void>;
  /** Not there: success. */
  stop(slice: string): Promise<void>;
  close(): void;
}

export interface SliceManagerDeps {
  clock: Clock;
  /** Replaced by tests. */
  connectBus?: () => Promise<DBus>;
  isBooted?: () => Promise<boolean>;
}

/** Connects to systemd over the system bus. Rejects with Unavailable where systemd is not the init or has no bus. */
export async function createSliceManager(deps: SliceManagerDeps): Promise<SliceManager> {
  const { clock, connectBus = () => connectDBus(busSocket, clock), isBooted = () => isThere(bootedMark) } = deps;
  if (!(await isBooted())) {
    throw new AgentError(
      "Unavailable",
      `cgroupDriver systemd: systemd does not run here (no ${bootedMark}); use cgroupfs for the agent and the runtime`,
    );
  }
  let connecting: Promise<DBus> | undefined;

  /** Calls systemd; once more on a new connection if the old one is gone (the bus was restarted). */
  const call = async (request: DBusCall): Promise<DBusValue[]> => {
    const reused = connecting;
    connecting ??= connectBus();
    try {
      return await (await connecting).call(request);
    } catch (err) {
      if (!hasCode(err, "Unavailable")) throw err;
      connecting = undefined;
      if (reused === undefined) throw err;
      return call(request);
    }
  };
  const systemd = (member: string, signature: string, args: readonly DBusValue[]) =>
    call({ ...manager, member, signature, args });

  const version = await readVersion(call);

  const set = async (slice: string, values: CgroupValues): Promise<void> => {
    const properties = limitProperties(values, version);
    if (properties.length === 0) return;
    await systemd("SetUnitProperties", "sba(sv)", [slice, true, properties]).catch(
      fail(`set limits of slice ${slice}`),
    );
  };

  return {
    start: async (slice, parent, values, exists) => {
      const properties = [...unitProperties(slice, parent), ...limitProperties(values, version)];
      try {
        await systemd("StartTransientUnit", "ssa(sv)a(sa(sv))", [slice, "replace", properties, []]);
      } catch (err) {
        if (!isError(err, "UnitExists")) fail(`start slice ${slice}`)(err);
        await set(slice, values);
      }
      const deadline = clock.monotonic() + sliceTimeoutMs;
      for (let waitMs = sliceLookMs.first; !(await exists()); waitMs = Math.min(waitMs * 2, sliceLookMs.max)) {
        if (clock.monotonic() >= deadline) {
          const seconds = sliceTimeoutMs / 1000;
          throw new AgentError("DeadlineExceeded", `slice ${slice} has no cgroup ${seconds} s after its start`);
        }
        await clock.sleep(waitMs);
      }
    },
    set,
    stop: async (slice) => {
      await systemd("StopUnit", "ss", [slice, "replace"]).catch((err: unknown) => {
        if (!isError(err, "NoSuchUnit")) fail(`stop slice ${slice}`)(err);
      });
    },
    close: () => {
      connecting?.then((bus) => bus.close()).catch(() => {}); // not connected: nothing to close
      connecting = undefined;
    },
  };
}

/** systemd's properties for our limits. Pure; `version` is systemd's. */
export function limitProperties(values: CgroupValues, version: number): Property[] {
  const properties: Property[] = [];
  const add = (name: string, value: number) => properties.push([name, new Variant("t", value)]);
  if (values.memoryBytes !== undefined) add("MemoryMax", values.memoryBytes);
  if (values.cpuShares !== undefined) add("CPUWeight", sharesToWeight(values.cpuShares));
  if (values.cpuQuotaUs !== undefined && values.cpuQuotaUs > 0) {
    const periodUs = values.cpuPeriodUs ?? 100_000;
    add("CPUQuotaPerSecUSec", Math.ceil((values.cpuQuotaUs * 1_000_000) / periodUs / quotaStepUs) * quotaStepUs);
    if (version >= versionWithQuotaPeriod) add("CPUQuotaPeriodUSec", periodUs);
  }
  // 0 would mean "systemd's default".
  if (values.pids !== undefined) add("TasksMax", Math.max(1, values.pids));
  if (values.cpus !== undefined && version >= versionWithAllowedCPUs) {
    properties.push(["AllowedCPUs", new Variant("ay", cpuMask(values.cpus))]);
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
  const yes = new Variant("b", true);
  return [
    ["Description", new Variant("s", `Kubernetes pods cgroup ${slice}`)],
    ...(parent === undefined ? [] : [["Wants", new Variant("as", [parent])] as const]),
    ["DefaultDependencies", new Variant("b", false)],
    ["MemoryAccounting", yes],
    ["CPUAccounting", yes],
    ["IOAccounting", yes],
    ["TasksAccounting", yes],
  ];
}

/** systemd's major version, from `252.30-1~deb12u2` or `v252`. */
async function readVersion(call: (request: DBusCall) => Promise<DBusValue[]>): Promise<number> {
  const [value] = await call({
    ...manager,
    interface: "org.freedesktop.DBus.Properties",
    member: "Get",
    signature: "ss",
    args: [manager.interface, "Version"],
  }).catch(fail("ask systemd for its version"));
  const text = value instanceof Variant ? textOf(value.value) : "";
  // Unknown: only properties that every systemd has.
  return Number(/^\D*(\d+)/.exec(text)?.[1] ?? 0);
}

/** For `.catch()`: says what was tried. */
function fail(what: string): (err: unknown) => never {
  return (err) => {
    const code = err instanceof AgentError ? err.code : "Internal";
    throw new AgentError(code, `cgroupDriver systemd: cannot ${what}: ${messageOf(err)}`, { cause: err });
  };
}

function isError(err: unknown, name: "UnitExists" | "NoSuchUnit"): boolean {
  return err instanceof DBusError && err.errorName === `org.freedesktop.systemd1.${name}`;
}
