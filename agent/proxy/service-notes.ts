import { isExternallyAccessible, reachability } from "./endpoints.ts";
import type { ServiceDescription, ServicePort } from "./model.ts";

/** A Service that wants to be asked on its healthCheckNodePort, as one IP family sees it. */
export interface HealthCheckedService {
  readonly port: number;
  /** Its ready endpoints on this node. */
  readonly localReady: number;
}

/** Service ports that have endpoints, but none on this node where their policy wants one, by traffic. */
export interface NoLocalCounts {
  readonly internal: number;
  readonly external: number;
}

interface Note {
  readonly healthCheck: HealthCheckedService | undefined;
  readonly noLocal: NoLocalCounts;
}

/**
 * What health checks and metrics need to know of services that are in the kernel; most services leave nothing. What is noted
 * counts once it is settled, with the sync that programmed it.
 */
export class ServiceNotes {
  readonly #settled = new Map<string, Note>();
  #staged = new Map<string, Note | undefined>();
  readonly #noLocal = { internal: 0, external: 0 };

  /** Begins with a sync: what an earlier one left that failed is forgotten. */
  reset(): void {
    this.#staged = new Map();
  }

  note(service: ServiceDescription): void {
    const noLocal = noLocalCounts(service.ports);
    const { healthCheckNodePort: port, localReady } = service;
    const healthCheck = port === 0 || service.ports.length === 0 ? undefined : { port, localReady };
    const isEmpty = healthCheck === undefined && noLocal.internal + noLocal.external === 0;
    this.#staged.set(service.key, isEmpty ? undefined : { healthCheck, noLocal });
  }

  /** @param isFull all services that there are have been noted: others have gone */
  settle(isFull: boolean): void {
    if (isFull) for (const key of this.#settled.keys()) if (!this.#staged.has(key)) this.#set(key, undefined);
    for (const [key, note] of this.#staged) this.#set(key, note);
    this.reset();
  }

  get noLocal(): NoLocalCounts {
    return { ...this.#noLocal };
  }

  /** By `namespace/name`. */
  healthChecks(): Map<string, HealthCheckedService> {
    const found = new Map<string, HealthCheckedService>();
    for (const [key, { healthCheck }] of this.#settled) if (healthCheck !== undefined) found.set(key, healthCheck);
    return found;
  }

  #set(key: string, note: Note | undefined): void {
    const before = this.#settled.get(key)?.noLocal;
    for (const traffic of ["internal", "external"] as const) {
      this.#noLocal[traffic] += (note?.noLocal[traffic] ?? 0) - (before?.[traffic] ?? 0);
    }
    if (note === undefined) this.#settled.delete(key);
    else this.#settled.set(key, note);
  }
}

function noLocalCounts(ports: readonly ServicePort[]): NoLocalCounts {
  const counts = { internal: 0, external: 0 };
  for (const port of ports) {
    if (!port.endpoints.hasAny) continue;
    const { internal, external } = reachability(port);
    if (!internal) counts.internal += 1;
    if (!external && isExternallyAccessible(port)) counts.external += 1;
  }
  return counts;
}
