import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { hasCode, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import type { ApiClient } from "../kube/port.ts";
import { leases, nodes } from "../kube/resources.ts";
import type { Lease } from "../kube/types.ts";

const leaseNamespace = "kube-node-lease";
// Renewed four times per lease, spread over 4 %: kubelet's nodeLeaseRenewIntervalFraction and jitter.
const renewFraction = 0.25;
const renewJitter = 0.04;
// Tries per renewal: kubelet's maxUpdateRetries.
const renewTriesMax = 5;
// First GET or CREATE: kubelet's 100 ms doubling to 7 s.
const ensureBackoff = { baseMs: 100, maxMs: 7_000 };

export interface LeaseDeps {
  /** The heartbeat client. */
  client: ApiClient;
  nodeName: string;
  /** nodeLeaseDurationSeconds. */
  durationSeconds: number;
  clock: Clock;
  log: Logger;
  random?: () => number;
}

/** Says to the control plane that the node is alive, every quarter of the lease's duration. */
export interface LeaseRenewer {
  /** Renews now: call it when the Node has just been registered. */
  wake(): void;
  /** Renews until `signal` aborts, also through a graceful shutdown of the node. The lease is left to expire. */
  run(signal: AbortSignal): Promise<void>;
}

interface CallTimes {
  signal: AbortSignal;
  timeoutMs: number;
}

/** The lease to write now. Pure. `nodeUID` makes the lease vanish with its Node. */
export function buildLease(
  old: Lease | undefined,
  options: { nodeName: string; nodeUID: string | undefined; durationSeconds: number },
  nowMs: number,
): Lease {
  const { nodeName, nodeUID, durationSeconds } = options;
  const owners = old?.metadata.ownerReferences ?? [];
  const owner = { apiVersion: "v1", kind: "Node", name: nodeName, uid: nodeUID ?? "" };
  return {
    apiVersion: "coordination.k8s.io/v1",
    kind: "Lease",
    ...old,
    metadata: {
      ...old?.metadata,
      name: nodeName,
      namespace: leaseNamespace,
      ...(owners.length === 0 && nodeUID !== undefined ? { ownerReferences: [owner] } : {}),
    },
    spec: {
      ...old?.spec,
      holderIdentity: nodeName,
      leaseDurationSeconds: durationSeconds,
      renewTime: microTime(nowMs),
    },
  };
}

/** The API's MicroTime: RFC 3339 with six decimals. */
export function microTime(ms: number): string {
  return new Date(ms).toISOString().replace("Z", "000Z");
}

/** Makes the renewer; nothing is sent before `run`. */
export function createLeaseRenewer(deps: LeaseDeps): LeaseRenewer {
  const { client, nodeName, durationSeconds, clock, log, random = Math.random } = deps;
  const renewMs = durationSeconds * 1_000 * renewFraction;
  const key = { namespace: leaseNamespace, name: nodeName };
  let held: Lease | undefined;
  let isFailing = false;

  const nodeUID = async (options: CallTimes) => (await client.get(nodes, { name: nodeName }, options)).metadata.uid;

  /** Reads the lease, or creates it: fresh and in need of no renewal. There is none before there is a Node. */
  const ensure = async (options: CallTimes): Promise<{ lease: Lease; isFresh: boolean }> => {
    try {
      return { lease: await client.get(leases, key, options), isFresh: false };
    } catch (err) {
      if (!hasCode(err, "NotFound")) throw err;
    }
    const fresh = buildLease(undefined, { nodeName, nodeUID: await nodeUID(options), durationSeconds }, clock.now());
    return { lease: await client.create(leases, fresh, options), isFresh: true };
  };

  const put = async (lease: Lease, options: CallTimes): Promise<Lease> => {
    const hasOwner = (lease.metadata.ownerReferences ?? []).length > 0;
    // A missing owner is only tidiness; the heartbeat goes out without it.
    const uid = hasOwner ? undefined : await nodeUID(options).catch(() => undefined);
    return client.update(leases, buildLease(lease, { nodeName, nodeUID: uid, durationSeconds }, clock.now()), options);
  };

  const renew = async (signal: AbortSignal): Promise<void> => {
    const options = { signal, timeoutMs: renewMs };
    let lastError: unknown;
    for (let attempt = 1; attempt <= renewTriesMax && !signal.aborted; attempt += 1) {
      if (held === undefined) {
        const { lease, isFresh } = await ensure(options);
        held = lease;
        if (isFresh) return;
      }
      try {
        held = await put(held, options);
        return;
      } catch (err) {
        lastError = err;
        // Somebody else wrote or removed it: read it anew. Anything else may be a dead connection.
        if (hasCode(err, "Conflict", "NotFound")) held = undefined;
        else if (attempt > 1) client.resetConnections();
      }
    }
    throw lastError;
  };

  const loop = new Loop({
    clock,
    resyncMs: renewMs,
    // Nothing held yet: the Node may appear any moment. Else the next renewal is soon enough: four fit in one lease.
    retryMs: (failures) => (held === undefined ? backoffMs(failures, ensureBackoff) : renewMs),
    onError: (err) => {
      isFailing = true;
      log.warn({ node: nodeName, err: messageOf(err) }, "cannot renew the node lease");
    },
    pass: async (signal) => {
      await renew(signal);
      if (isFailing) log.info({ node: nodeName }, "the node lease is renewed again");
      isFailing = false;
      return renewMs * (1 + renewJitter * random());
    },
  });
  return { wake: () => loop.wake(), run: (signal) => loop.run(signal) };
}
