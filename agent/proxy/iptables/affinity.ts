import { hash } from "node:crypto";
import type { Family } from "../ip.ts";
import type { Protocol } from "../service.ts";
import { itemsInRowMax } from "./balance.ts";
import { portSuffix } from "./names.ts";

/**
 * Sets of clients, a few for each service that remembers clients and has many endpoints. Calls reject like those of `ServiceSet`.
 */
export interface ClientSets {
  /** Creates those that are not there. What is in the others stays. */
  create(names: readonly string[], signal: AbortSignal): Promise<void>;
  /** Names of all sets of clients of this family. */
  list(signal: AbortSignal): Promise<string[]>;
  /** Removes them. One that a rule refers to stays; so does its name in the next list. */
  destroy(names: readonly string[], signal: AbortSignal): Promise<void>;
}

/** What names of sets of clients start with. */
export function clientSetPrefix(family: Family): string {
  return family === "IPv4" ? "KUBE-AFF-" : "KUBE-6-AFF-";
}

/** With so many endpoints, looking for a client's endpoint among all of them costs every new client too many rules. */
export function needsClientSets(endpoints: number): boolean {
  return endpoints > itemsInRowMax;
}

/** The group of an endpoint: one of sixteen, whatever other endpoints there are. */
export function affinityGroup(address: string): string {
  return hash("sha256", address, "hex").charAt(0);
}

/** The set of clients that some endpoint of the group remembers. */
export function clientSetName(family: Family, servicePortName: string, protocol: Protocol, group: string): string {
  return `${clientSetPrefix(family)}${portSuffix(servicePortName, protocol)}-${group}`;
}
