import type { Store } from "../kube/port.ts";
import type { Node } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { AgentError } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import type { ProxyOptions } from "./options.ts";

/** What rules depend on that the Node says, as it was and as it is. */
export interface NodeChange {
  readonly what: "podCIDRs" | "nodeIPs";
  readonly from: readonly string[];
  readonly to: readonly string[];
}

/** The proxy's options, with the Node's pod CIDRs and addresses as they were seen last. */
export interface NodeFacts {
  /** Read it whenever it is needed: a copy does not change any more. */
  readonly options: ProxyOptions;
  /** Takes the Node as it is now. What it does not say at the moment stays as it was. @returns what is another now */
  update(node: Node): NodeChange[];
}

// The reference gives a new node this long to be assigned its pod CIDRs.
const podCIDRsTimeoutMs = 300_000;

/**
 * Lets the options follow the Node.
 *
 * @param nodeIPsOf the node's addresses in the sense of the options, the primary one first; absent: they stay
 */
export function followNodeFacts(
  given: ProxyOptions,
  nodeIPsOf: ((node: Node) => readonly string[]) | undefined,
): NodeFacts {
  let { detectLocal, nodeIPs } = given;
  const followsPodCIDRs = detectLocal.mode === "NodeCIDR" && detectLocal.cidrs.length === 0;
  const options: ProxyOptions = {
    ...given,
    get detectLocal() {
      return detectLocal;
    },
    get nodeIPs() {
      return nodeIPs;
    },
  };
  return {
    options,
    update: (node) => {
      const changes: NodeChange[] = [];
      const podCIDRs = followsPodCIDRs ? (node.spec?.podCIDRs ?? []) : [];
      if (podCIDRs.length > 0 && podCIDRs.join() !== detectLocal.cidrs.join()) {
        changes.push({ what: "podCIDRs", from: detectLocal.cidrs, to: podCIDRs });
        detectLocal = { ...detectLocal, cidrs: podCIDRs };
      }
      const ips = nodeIPsOf?.(node) ?? [];
      if (ips.length > 0 && ips.join() !== nodeIPs.join()) {
        changes.push({ what: "nodeIPs", from: nodeIPs, to: ips });
        nodeIPs = ips;
      }
      return changes;
    },
  };
}

/** In NodeCIDR mode, waits for the Node to have pod CIDRs. Rejects with Unavailable if it gets none in time. */
export async function waitForPodCIDRs(
  { options, update }: NodeFacts,
  { nodes, clock, log }: { readonly nodes: Store<Node>; readonly clock: Clock; readonly log: Logger },
  signal: AbortSignal,
): Promise<void> {
  const { nodeName } = options;
  const hasThem = () => options.detectLocal.mode !== "NodeCIDR" || options.detectLocal.cidrs.length > 0;
  const found = new AbortController();
  const unsubscribe = nodes.subscribe(({ object }) => {
    if (object?.metadata.name !== nodeName) return;
    update(object);
    if (hasThem()) found.abort();
  });
  try {
    if (hasThem()) return;
    log.info({ node: nodeName, waitMs: podCIDRsTimeoutMs }, "waiting for the Node to have pod CIDRs");
    await clock.sleep(podCIDRsTimeoutMs, AbortSignal.any([signal, found.signal])).catch(() => {});
  } finally {
    unsubscribe();
  }
  signal.throwIfAborted();
  if (hasThem()) return;
  throw new AgentError("Unavailable", `node ${nodeName} has no pod CIDRs, which detectLocalMode NodeCIDR needs`);
}
