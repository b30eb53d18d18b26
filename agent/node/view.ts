import type { Store } from "../kube/port.ts";
import type { Node, ResourceList } from "../kube/types.ts";
import { hostIPs } from "./addresses.ts";
import type { NodeAgent } from "./registration.ts";
import { type RuntimeHealth, runtimeProblems } from "./runtime-health.ts";

export interface NodeViewDeps {
  nodeName: string;
  agent: Pick<NodeAgent, "node">;
  health: RuntimeHealth;
  /** Holds the own Node. */
  nodeStore: Pick<Store<Node>, "subscribe">;
  now: () => number;
}

/** The node as pods see it: every answer is the present one. */
export interface NodeView {
  readonly nodeName: string;
  /** "containerd" in container IDs; "" before the runtime's first answer. */
  readonly runtimeName: string;
  /** At most one per family, the primary family first; empty while unknown. */
  hostIPs(): string[];
  allocatable(): ResourceList;
  isRuntimeReady(): boolean;
  isNetworkReady(): boolean;
  /** Why the network is not ready, for people; "" if it is. */
  networkProblem(): string;
  /** True if the runtime handler ("" is the default one) mounts recursively read-only. */
  hasRecursiveReadOnly(handler: string): boolean;
  /** True if the runtime handler gives pods user namespaces of their own. */
  hasUserNamespaces(handler: string): boolean;
  /** Calls `listener` after any of the above changed. */
  subscribe(listener: () => void): () => void;
}

/** Makes the view. It holds no state of its own. */
export function createNodeView({ nodeName, agent, health, nodeStore, now }: NodeViewDeps): NodeView {
  const shown = (node: Node | undefined) => JSON.stringify([hostIPs(node), node?.status?.allocatable]);
  return {
    nodeName,
    get runtimeName() {
      return health.state.version?.runtimeName ?? "";
    },
    hostIPs: () => hostIPs(agent.node()),
    allocatable: () => agent.node().status?.allocatable ?? {},
    isRuntimeReady: () => health.isRuntimeReady(),
    isNetworkReady: () => health.isNetworkReady(),
    networkProblem: () => runtimeProblems(health.state, now()).network.join("; "),
    hasRecursiveReadOnly: (handler) =>
      health.state.handlers.some(({ name, recursiveReadOnlyMounts }) => name === handler && recursiveReadOnlyMounts),
    hasUserNamespaces: (handler) =>
      health.state.handlers.some(({ name, userNamespaces }) => name === handler && userNamespaces),
    subscribe: (listener) => {
      const stops = [
        health.subscribe(listener),
        // Our own heartbeats come back here every few seconds and mean nothing to pods.
        nodeStore.subscribe(({ old, object }) => {
          if (shown(old) !== shown(object)) listener();
        }),
      ];
      return () => {
        for (const stop of stops) stop();
      };
    },
  };
}
