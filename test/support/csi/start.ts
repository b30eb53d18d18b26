import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdir, readFile, rm } from "node:fs/promises";
import { createInterface } from "node:readline";
import { writeFileAtomic } from "../../../agent/lib/atomic-file.ts";
import {
  type CSICallRecord,
  type CSIDriverConfig,
  type CSIFault,
  configPath,
  driverSocket,
  faultsPath,
  journalPath,
  readConfig,
  readFaults,
  registrationSocket,
} from "./config.ts";
import { removeVolumes } from "./volumes.ts";

const program = new URL("main.ts", import.meta.url).pathname;

export interface CSIDriverOptions extends Partial<Omit<CSIDriverConfig, "rootDir">> {
  /** The agent's root directory. */
  rootDir: string;
  /** Where the driver keeps its own things; made if it is not there. */
  dir: string;
}

/** A real CSI driver: registration and node service on sockets in the node's plugin directories, with volumes that can be mounted. */
export interface TestCSIDriver extends AsyncDisposable {
  readonly name: string;
  /** Path of the socket that makes the agent find it. */
  readonly registrationSocket: string;
  /** Starts it; resolves when it listens. */
  start(): Promise<void>;
  /** SIGTERM takes its sockets along, SIGKILL leaves them. Resolves when it has ended; its volumes stay. */
  stop(signal?: "SIGTERM" | "SIGKILL"): Promise<void>;
  /** Changes what it says and can do, also while it runs. */
  configure(changes: Partial<Omit<CSIDriverConfig, "rootDir" | "name">>): Promise<void>;
  /** Makes a method fail or hang from now on. */
  fail(method: string, fault: Omit<CSIFault, "id">): Promise<void>;
  /** Takes away the fault of a method, or all. What hangs goes on. */
  heal(method?: string): Promise<void>;
  /** Calls so far, of all its runs, in the order of their arrival. */
  calls(method?: string): Promise<CSICallRecord[]>;
  /** Ends it and removes everything that it has: volumes, devices, sockets, its directory. Idempotent. */
  destroy(): Promise<void>;
}

/** Starts a driver. With nothing said it can stage, expand and tell statistics. */
export async function startCSIDriver(options: CSIDriverOptions): Promise<TestCSIDriver> {
  const { dir } = options;
  const config: CSIDriverConfig = {
    name: "csi.test",
    nodeID: "node-1",
    versions: ["1.0.0"],
    capabilities: ["STAGE_UNSTAGE_VOLUME", "GET_VOLUME_STATS", "EXPAND_VOLUME"],
    maxVolumesPerNode: 0,
    topology: {},
    pluginType: "CSIPlugin",
    ...options,
  };
  await mkdir(dir, { recursive: true, mode: 0o700 });
  await writeFileAtomic(configPath(dir), JSON.stringify(config));
  let running: { child: ChildProcess; ended: Promise<void> } | undefined;

  const stop = async (signal: "SIGTERM" | "SIGKILL" = "SIGTERM") => {
    const stopping = running;
    running = undefined;
    stopping?.child.kill(signal);
    await stopping?.ended;
  };
  const driver: TestCSIDriver = {
    name: config.name,
    registrationSocket: registrationSocket(config),
    start: async () => {
      if (running !== undefined) throw new Error(`CSI driver ${config.name} runs already`);
      running = await launch(dir);
    },
    stop,
    configure: async (changes) => {
      await writeFileAtomic(configPath(dir), JSON.stringify({ ...(await readConfig(dir)), ...changes }));
    },
    fail: async (method, fault) => {
      const faults = { ...(await readFaults(dir)), [method]: { ...fault, id: randomUUID() } };
      await writeFileAtomic(faultsPath(dir), JSON.stringify(faults));
    },
    heal: async (method) => {
      const faults = await readFaults(dir);
      const left = method === undefined ? {} : Object.fromEntries(Object.entries(faults).filter(([m]) => m !== method));
      await writeFileAtomic(faultsPath(dir), JSON.stringify(left));
    },
    calls: async (method) => {
      const all = mergeRecords(await readFile(journalPath(dir), "utf8").catch(() => ""));
      return method === undefined ? all : all.filter((record) => record.method === method);
    },
    destroy: async () => {
      await stop("SIGKILL");
      await removeVolumes(dir);
      await rm(registrationSocket(config), { force: true });
      await rm(driverSocket(config), { force: true });
      await rm(dir, { recursive: true, force: true });
    },
    [Symbol.asyncDispose]: async () => await driver.destroy(),
  };
  try {
    await driver.start();
  } catch (err) {
    await driver.destroy();
    throw err;
  }
  return driver;
}

async function launch(dir: string): Promise<{ child: ChildProcess; ended: Promise<void> }> {
  const child = spawn(process.execPath, [program, dir], { stdio: ["pipe", "pipe", "inherit"] });
  const ended = new Promise<void>((resolve) => void child.once("exit", () => resolve()));
  const isReady = await new Promise<boolean>((resolve) => {
    createInterface({ input: child.stdout })
      .once("line", () => resolve(true))
      .once("close", () => resolve(false));
  });
  if (isReady) return { child, ended };
  await ended;
  throw new Error(`the CSI driver in ${dir} did not start`);
}

/** Each call is written when it comes and again when it is answered. */
function mergeRecords(journal: string): CSICallRecord[] {
  const records = new Map<string, CSICallRecord>();
  for (const line of journal.split("\n")) {
    if (line === "") continue;
    const record = JSON.parse(line) as CSICallRecord;
    records.set(`${record.pid}/${record.call}`, record);
  }
  return [...records.values()];
}
