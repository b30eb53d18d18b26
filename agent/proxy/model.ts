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
import { describeService, type ServicePortSpec } from "./service.ts";

/** A service port and the endpoints its traffic goes to. */
export interface ServicePort extends ServicePortSpec {
  readonly endpoints: EndpointSets;
  /** `ip:port` of every endpoint that still answers, whatever policies say. */
  readonly serving: readonly string[];
}

/** All that a backend needs to know to program one Service for one family. */
export interface ServiceDescription {
  /** `namespace/name`. */
  readonly key: string;
  readonly ports: readonly ServicePort[];
  /** 0: none. */
  readonly healthCheckNodePort: number;
  readonly warnings: readonly string[];
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
  /** By slice key. The objects are the store's own. */
  readonly slices: Map<string, EndpointSlice>;
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
  readonly #dirty = new Map<string, number>();
  readonly #triggerTimes = new Map<string, number[]>();
  #sequence = 0;

  constructor(family: Family, node: ModelNode) {
    this.family = family;
    this.#node = node;
  }

  /** Notes a Service as it is now; `undefined`: it is gone. */
  setService(key: string, service: Service | undefined): void {
    if (service === undefined && !this.#services.has(key)) return;
    this.#tracked(key).service = service;
    this.#touch(key);
  }

  /** Notes an EndpointSlice as it is now; `undefined`: it is gone. Slices of another family or of no service are ignored. */
  setSlice(sliceKey: string, slice: EndpointSlice | undefined): void {
    const before = this.#sliceOwners.get(sliceKey);
    const after = slice === undefined ? undefined : serviceKeyOfSlice(slice, this.family);
    if (before !== undefined && before !== after) {
      this.#tracked(before).slices.delete(sliceKey);
      this.#sliceOwners.delete(sliceKey);
      this.#touch(before);
      if (slice === undefined) this.#triggerTimes.delete(before);
    }
    if (after === undefined || slice === undefined) return;
    this.#sliceOwners.set(sliceKey, after);
    this.#tracked(after).slices.set(sliceKey, slice);
    this.#touch(after);
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
    let count = 0;
    for (const { service, slices } of this.#services.values()) {
      if (service === undefined) continue;
      for (const { endpoints, ports } of slices.values()) count += (endpoints?.length ?? 0) * (ports?.length ?? 0);
    }
    return count;
  }

  /** The service as it should be programmed now; without ports if it should not be. */
  describe(key: string): ServiceDescription {
    const tracked = this.#services.get(key);
    if (tracked?.service === undefined) return { key, ports: [], healthCheckNodePort: 0, warnings: [] };
    const node = this.#node;
    const spec = describeService(tracked.service, this.family, node.ips);
    if (spec.ports.length === 0) return { ...spec, key, ports: [] };
    const { byPort, warnings } = mergeSlices([...tracked.slices.values()], this.family, node.name);
    const ports = spec.ports.map((port): ServicePort => {
      const all: readonly Endpoint[] = byPort.get(endpointsKey(port.portName, port.protocol)) ?? [];
      const endpoints = selectEndpoints(port, all, { nodeName: node.name, zone: node.zone });
      return { ...port, endpoints, serving: all.filter((e) => e.isServing).map((e) => e.address) };
    });
    return { key, ports, healthCheckNodePort: spec.healthCheckNodePort, warnings: [...spec.warnings, ...warnings] };
  }

  /** What changed and has not been settled yet. Taking it forgets nothing. */
  pending(): PendingChanges {
    return { keys: new Set(this.#dirty.keys()), sequence: this.#sequence };
  }

  get hasPending(): boolean {
    return this.#dirty.size > 0;
  }

  /**
   * Forgets changes that are in the kernel now. A service that changed again meanwhile stays pending.
   *
   * @returns the trigger times (Unix ms) of the settled endpoint changes
   */
  settle(changes: PendingChanges): number[] {
    const times: number[] = [];
    for (const key of changes.keys) {
      const touched = this.#dirty.get(key);
      if (touched === undefined || touched > changes.sequence) continue;
      this.#dirty.delete(key);
      times.push(...(this.#triggerTimes.get(key) ?? []));
      this.#triggerTimes.delete(key);
      const tracked = this.#services.get(key);
      if (tracked?.service === undefined && tracked?.slices.size === 0) this.#services.delete(key);
    }
    return times;
  }

  #tracked(key: string): Tracked {
    let tracked = this.#services.get(key);
    if (tracked === undefined) this.#services.set(key, (tracked = { service: undefined, slices: new Map() }));
    return tracked;
  }

  #touch(key: string): void {
    this.#dirty.set(key, ++this.#sequence);
  }

  #noteTriggerTime(key: string, slice: EndpointSlice): void {
    const time = Date.parse(slice.metadata.annotations?.[triggerTimeAnnotation] ?? "");
    if (Number.isNaN(time)) return;
    const times = this.#triggerTimes.get(key) ?? [];
    if (times.length < triggerTimesPerServiceMax && times.at(-1) !== time) times.push(time);
    this.#triggerTimes.set(key, times);
  }
}

function ipsText(node: ModelNode): string {
  return node.ips.map((ip) => ip.bits).join();
}
