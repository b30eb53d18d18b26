import type { EndpointSlice, Service } from "../kube/types.ts";
import {
  type Endpoint,
  type EndpointSets,
  endpointsKey,
  mergeSlices,
  selectEndpoints,
  serviceKeyOfSlice,
} from "./endpoints.ts";
import type { Family, Prefix } from "./ip.ts";
import { describeService, mayHaveFamily, type ServicePortSpec, serviceProxyNameLabel } from "./service.ts";

/** A service port and the endpoints its traffic goes to. */
export interface ServicePort extends ServicePortSpec {
  readonly endpoints: EndpointSets;
  /**
   * `ip:port` of every endpoint that still answers, whatever policies say. With SCTP, of every endpoint that is there: an
   * association lives until one of its ends closes it, also with a pod that takes no new ones.
   */
  readonly serving: readonly string[];
}

/** All that a backend needs to know to program one Service for one family. */
export interface ServiceDescription {
  /** `namespace/name`. */
  readonly key: string;
  readonly ports: readonly ServicePort[];
  /** 0: none. */
  readonly healthCheckNodePort: number;
  /** Pods of this node that are ready, by their addresses; only counted for a `healthCheckNodePort`, otherwise 0. */
  readonly localReady: number;
  readonly warnings: readonly string[];
}

/** How many changes came from the API server. */
export interface ChangeCounts {
  /** All so far. */
  readonly services: number;
  readonly slices: number;
  /** Services that changed, and changes of slices, that are not in the kernel yet. */
  readonly pendingServices: number;
  readonly pendingSlices: number;
}

/** Which changes a sync is about to apply; hand it back to `settle` once they are in the kernel. */
export interface PendingChanges {
  readonly keys: ReadonlySet<string>;
  /** Changes noted later than this are not part of it. */
  readonly sequence: number;
}

/** What the model knows about its place. */
export interface ModelNode {
  readonly name: string;
  readonly zone: string | undefined;
  readonly ips: readonly Prefix[];
}

interface Tracked {
  service: Service | undefined;
  /** The objects are the store's own. Nearly always one or two: a map for each service would weigh more than they. */
  slices: readonly TrackedSlice[];
}

interface TrackedSlice {
  readonly key: string;
  readonly slice: EndpointSlice;
}

/** What is known to have changed of one service since it was settled last. */
interface Dirt {
  /** Of the last change. */
  sequence: number;
  isService: boolean;
  slices: number;
}

// kube-controller-manager's annotation with the time of the change that a slice reflects.
const triggerTimeAnnotation = "endpoints.kubernetes.io/last-change-trigger-time";
// One slice update carries one time; a service that changes more often between two syncs says nothing new.
const triggerTimesPerServiceMax = 64;

/**
 * Services and their endpoint slices, as one IP family sees them. Holds references to the stores' objects and a
 * set of services that changed; derives everything else on demand, one service at a time. No I/O, no clock.
 */
export class ServiceModel {
  readonly family: Family;
  #node: ModelNode;
  readonly #services = new Map<string, Tracked>();
  /** Service key by slice key: a slice may be re-labelled. */
  readonly #sliceOwners = new Map<string, string>();
  readonly #dirty = new Map<string, Dirt>();
  readonly #triggerTimes = new Map<string, number[]>();
  #sequence = 0;
  #endpointCount = 0;
  #counts = { services: 0, slices: 0, pendingServices: 0, pendingSlices: 0 };

  constructor(family: Family, node: ModelNode) {
    this.family = family;
    this.#node = node;
  }

  /** Notes a Service as it is now; `undefined`: it is gone. */
  setService(key: string, service: Service | undefined): void {
    if (service === undefined && !this.#services.has(key)) return;
    // With two families most services are of one: what the other has nothing to do with costs it nothing.
    const hadPorts = this.#services.get(key)?.service !== undefined;
    if (service !== undefined && !hadPorts && !mayHaveFamily(service, this.family)) {
      this.#counts.services += 1;
      return;
    }
    const tracked = this.#tracked(key);
    const before = tracked.service;
    tracked.service = service;
    if (before !== undefined && service !== undefined && isSameToRules(before, service)) {
      this.#counts.services += 1; // it came, but nothing is to be done for it
      return;
    }
    this.#touch(key, "services");
  }

  /** Notes an EndpointSlice as it is now; `undefined`: it is gone. Slices of another family or of no service are ignored. */
  setSlice(sliceKey: string, slice: EndpointSlice | undefined): void {
    const before = this.#sliceOwners.get(sliceKey);
    const after = slice === undefined ? undefined : serviceKeyOfSlice(slice, this.family);
    if (before !== undefined && before !== after) {
      const tracked = this.#tracked(before);
      this.#leaveOut(tracked, sliceKey);
      this.#sliceOwners.delete(sliceKey);
      this.#touch(before, "slices");
      if (slice === undefined) this.#triggerTimes.delete(before);
    }
    if (after === undefined || slice === undefined) return;
    this.#sliceOwners.set(sliceKey, after);
    const tracked = this.#tracked(after);
    this.#leaveOut(tracked, sliceKey);
    tracked.slices = [...tracked.slices, { key: sliceKey, slice }];
    this.#endpointCount += weightOf(slice);
    this.#touch(after, "slices");
    this.#noteTriggerTime(after, slice);
  }

  /** Notes where we are. Returns true if that changes which endpoints are chosen: everything must be rendered anew. */
  setNode(node: ModelNode): boolean {
    const old = this.#node;
    this.#node = node;
    return old.name !== node.name || old.zone !== node.zone || ipsText(old) !== ipsText(node);
  }

  /** Keys of all services that may have ports, sorted. */
  keys(): string[] {
    const keys: string[] = [];
    for (const [key, tracked] of this.#services) if (tracked.service !== undefined) keys.push(key);
    return keys.sort();
  }

  /** Upper bound of the endpoints behind all known service ports; cheap. */
  endpointCount(): number {
    return this.#endpointCount;
  }

  /** The service as it should be programmed now; without ports if it should not be. */
  describe(key: string): ServiceDescription {
    const tracked = this.#services.get(key);
    if (tracked?.service === undefined) return { ...nothing, key };
    const node = this.#node;
    const spec = describeService(tracked.service, this.family, node.ips);
    if (spec.ports.length === 0) return { ...spec, key, ports: [], localReady: 0 };
    const { byPort, warnings } = mergeSlices(
      tracked.slices.map(({ slice }) => slice),
      this.family,
      node.name,
    );
    const ports = spec.ports.map((port): ServicePort => {
      const all: readonly Endpoint[] = byPort.get(endpointsKey(port.portName, port.protocol)) ?? [];
      const endpoints = selectEndpoints(port, all, { nodeName: node.name, zone: node.zone });
      const answering = port.protocol === "sctp" ? all : all.filter((endpoint) => endpoint.isServing);
      return { ...port, endpoints, serving: answering.map(({ address }) => address) };
    });
    const { healthCheckNodePort } = spec;
    const localReady = healthCheckNodePort === 0 ? 0 : countLocalReady(byPort.values());
    return { key, ports, healthCheckNodePort, localReady, warnings: [...spec.warnings, ...warnings] };
  }

  /** What changed and has not been settled yet. Taking it forgets nothing. */
  pending(): PendingChanges {
    return { keys: new Set(this.#dirty.keys()), sequence: this.#sequence };
  }

  get hasPending(): boolean {
    return this.#dirty.size > 0;
  }

  /** How many services have changes that are not settled. */
  get pendingCount(): number {
    return this.#dirty.size;
  }

  changes(): ChangeCounts {
    return { ...this.#counts };
  }

  /**
   * Forgets changes that are in the kernel now. A service that changed again meanwhile stays pending.
   *
   * @returns the trigger times (Unix ms) of the settled endpoint changes
   */
  settle(changes: PendingChanges): number[] {
    const times: number[] = [];
    for (const key of changes.keys) {
      const dirt = this.#dirty.get(key);
      if (dirt === undefined || dirt.sequence > changes.sequence) continue;
      this.#dirty.delete(key);
      if (dirt.isService) this.#counts.pendingServices -= 1;
      this.#counts.pendingSlices -= dirt.slices;
      times.push(...(this.#triggerTimes.get(key) ?? []));
      this.#triggerTimes.delete(key);
      const tracked = this.#services.get(key);
      if (tracked?.service === undefined && tracked?.slices.length === 0) this.#services.delete(key);
    }
    return times;
  }

  #leaveOut(tracked: Tracked, sliceKey: string): void {
    for (const { key, slice } of tracked.slices) if (key === sliceKey) this.#endpointCount -= weightOf(slice);
    tracked.slices = tracked.slices.filter(({ key }) => key !== sliceKey);
  }

  #tracked(key: string): Tracked {
    let tracked = this.#services.get(key);
    if (tracked === undefined) this.#services.set(key, (tracked = { service: undefined, slices: noSlices }));
    return tracked;
  }

  #touch(key: string, what: "services" | "slices"): void {
    let dirt = this.#dirty.get(key);
    if (dirt === undefined) this.#dirty.set(key, (dirt = { sequence: 0, isService: false, slices: 0 }));
    dirt.sequence = ++this.#sequence;
    this.#counts[what] += 1;
    if (what === "slices") {
      dirt.slices += 1;
      this.#counts.pendingSlices += 1;
    } else if (!dirt.isService) {
      dirt.isService = true;
      this.#counts.pendingServices += 1;
    }
  }

  #noteTriggerTime(key: string, slice: EndpointSlice): void {
    const time = Date.parse(slice.metadata.annotations?.[triggerTimeAnnotation] ?? "");
    if (Number.isNaN(time)) return;
    const times = this.#triggerTimes.get(key) ?? [];
    if (times.length < triggerTimesPerServiceMax && times.at(-1) !== time) times.push(time);
    this.#triggerTimes.set(key, times);
  }
}

/** Whether two states of a Service differ in nothing that a rule depends on: only in an annotation, say. */
function isSameToRules(a: Service, b: Service): boolean {
  const isOthers = ({ metadata }: Service) => metadata.labels?.[serviceProxyNameLabel] !== undefined;
  return (
    isOthers(a) === isOthers(b) &&
    JSON.stringify(a.spec) === JSON.stringify(b.spec) &&
    JSON.stringify(a.status?.loadBalancer) === JSON.stringify(b.status?.loadBalancer)
  );
}

/** Endpoints behind ports. A malformed slice may have anything in their place. */
function weightOf({ endpoints, ports }: EndpointSlice): number {
  return lengthOf(endpoints) * lengthOf(ports);
}

function lengthOf(list: unknown): number {
  return Array.isArray(list) ? list.length : 0;
}

const noSlices: readonly TrackedSlice[] = [];
const nothing = { ports: [], healthCheckNodePort: 0, localReady: 0, warnings: [] };

/** Distinct addresses of ready endpoints on this node. A terminating one does not count, whatever it says of itself. */
function countLocalReady(lists: Iterable<readonly Endpoint[]>): number {
  const ips = new Set<string>();
  for (const list of lists) {
    for (const { ip, isLocal, isReady, isTerminating } of list) if (isLocal && isReady && !isTerminating) ips.add(ip);
  }
  return ips.size;
}

function ipsText(node: ModelNode): string {
  return node.ips.map((ip) => ip.bits).join();
}
