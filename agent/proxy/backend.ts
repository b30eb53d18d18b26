import type { Family } from "./ip.ts";
import type { ServiceDescription } from "./model.ts";

/** One sync of one IP family. */
export interface SyncRequest {
  /** A full sync: what the kernel has is read, all that differs is written, what is stale is removed. */
  readonly isFull: boolean;
  /** Full: all services, sorted. Otherwise: those that changed or went. */
  readonly keys: readonly string[];
  readonly describe: (key: string) => ServiceDescription;
  /** Endpoints behind all services; only asked about at full syncs. */
  readonly endpointCount: () => number;
}

/** More endpoints than this are the reference's "large cluster", which gets less that is for people, and is not synced fully by the hour. */
export const endpointsOfSmallClusterMax = 1_000;

/**
 * Keeps the kernel's rules of one IP family equal to the services. One call at a time; the caller serialises.
 * Calls reject with an `AgentError`: Invalid (the kernel or its tool did not accept the rules), Unavailable (locked, killed, could not
 * be started) or Canceled.
 */
export interface Backend {
  readonly family: Family;
  /** The hourly full sync is worth its cost however many endpoints there are. */
  readonly syncsFullyAtAnySize?: boolean;
  /** The last sync failed, or there was none: the next one must be full. */
  readonly needsFull: boolean;
  /** @returns figures for the log */
  sync(request: SyncRequest, signal: AbortSignal): Promise<Readonly<Record<string, number>>>;
  /** For metrics. Cheap. */
  figures?(): BackendFigures;
  /**
   * Looks whether the rules are still there. Cheap.
   * @returns what is missing, or undefined. Rejects if that could not be found out.
   */
  findDamage(signal: AbortSignal): Promise<string | undefined>;
  /** What works beside the rules, until `signal` aborts. */
  run?(signal: AbortSignal): Promise<void>;
}

/** What metrics tell of a backend; absent what a mode does not have. */
export interface BackendFigures {
  /** iptables: by table, rules that are ours, and those that the last sync wrote. */
  readonly rules?: Readonly<Record<string, { readonly owned: number; readonly written: number }>>;
  /** iptables: what rules have counted, asked of the kernel now or a moment ago. Never rejects. */
  readonly packets?: () => Promise<PacketFigures>;
  /** nftables: how often empty chains of services that are gone could not be deleted. */
  readonly cleanupFailures?: number;
}

/** Packets since the rules were written; absent what is not counted or cannot be read. */
export interface PacketFigures {
  /** Dropped because they belong to no known connection. */
  readonly invalidDropped?: number;
  /** First packets of connections to node ports on loopback. */
  readonly localhostNodePorts?: number;
}
