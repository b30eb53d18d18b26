import { readFile } from "node:fs/promises";
import { join } from "node:path";

/** How a test CSI driver behaves. Kept in DIR/config.json and read anew at each call, so that it can change while it runs. */
export interface CSIDriverConfig {
  /** As in CSIDriver and PersistentVolume objects. */
  name: string;
  /** The agent's root directory, below which its sockets are. */
  rootDir: string;
  nodeID: string;
  /** Versions of CSI told at registration. */
  versions: string[];
  /** Names of NodeServiceCapability.RPC.Type. */
  capabilities: string[];
  /** 0: no limit. */
  maxVolumesPerNode: number;
  topology: Record<string, string>;
  /** The type told at registration. */
  pluginType: string;
  /** What NodeGetVolumeStats says of volumes' health; undefined: nothing. */
  condition?: { abnormal: boolean; message: string };
}

/** What goes wrong with a method from now on. Kept in DIR/faults.json by the method's name. */
export interface CSIFault {
  /** Name of a gRPC status, `Internal`; absent: the call succeeds, after what else is said here. */
  code?: string;
  message?: string;
  /** True: the work is done before the call fails. */
  isAfterwards?: boolean;
  /** True: no answer until the fault is taken away. */
  hangs?: boolean;
  /** How often; absent: until it is taken away. */
  times?: number;
  /** Tells one fault from the next that looks the same. */
  id?: string;
}

/** One call that reached the driver, from DIR/journal.jsonl. */
export interface CSICallRecord {
  /** Counts from 1 in each run of the driver. */
  call: number;
  /** The driver's process. */
  pid: number;
  /** `NodePublishVolume`, `NotifyRegistrationStatus` … */
  method: string;
  /** The request as it came; 64-bit numbers are decimal strings. */
  request: Record<string, unknown>;
  /** What was answered: `OK` or the name of a status; undefined: nothing yet, or the driver died. */
  code?: string;
}

export const configPath = (dir: string): string => join(dir, "config.json");
export const faultsPath = (dir: string): string => join(dir, "faults.json");
export const journalPath = (dir: string): string => join(dir, "journal.jsonl");

/** The socket on which a driver serves CSI. */
export function driverSocket({ rootDir, name }: Pick<CSIDriverConfig, "rootDir" | "name">): string {
  return join(rootDir, "plugins", name, "csi.sock");
}

/** The socket on which it registers. */
export function registrationSocket({ rootDir, name }: Pick<CSIDriverConfig, "rootDir" | "name">): string {
  return join(rootDir, "plugins_registry", `${name}-reg.sock`);
}

export async function readConfig(dir: string): Promise<CSIDriverConfig> {
  return JSON.parse(await readFile(configPath(dir), "utf8")) as CSIDriverConfig; // tests write it through start.ts
}

export async function readFaults(dir: string): Promise<Record<string, CSIFault>> {
  const text = await readFile(faultsPath(dir), "utf8").catch(() => "{}");
  return JSON.parse(text) as Record<string, CSIFault>;
}
