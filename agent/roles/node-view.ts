import type { Store } from "../kube/port.ts";
import type { Node, ResourceList } from "../kube/types.ts";
import { hostIPs } from "../node/addresses.ts";
import type { NodeAgent } from "../node/registration.ts";
import { type RuntimeHealth, runtimeProblems } from "../node/runtime-health.ts";
import type { NodeView } from "../pods/port.ts";
import type { Clock } from "../lib/clock.ts";

export interface NodeViewOptions {
  nodeName: string;
  runtimeName: string;
  /** Allocatable resources while the Node does not say. */
  allocatable: ResourceList;
  agent: Pick<NodeAgent, "node">;
  nodeStore: Store<Node>;
  health: RuntimeHealth;
  clock: Clock;
}

/** The node as pods see it: the Node's status, and the runtime's health. */
export function createNodeView(options: NodeViewOptions): NodeView {
  const { nodeName, runtimeName, agent, nodeStore, health, clock } = options;
  return {
    nodeName,
    runtimeName,
    hostIPs: () => hostIPs(agent.node()),
    allocatable: () => agent.node().status?.allocatable ?? options.allocatable,
    isRuntimeReady: () => health.isRuntimeReady(),
    isNetworkReady: () => health.isNetworkReady(),
    networkProblem: () => runtimeProblems(health.state, clock.now()).network.join(", "),
    hasRecursiveReadOnly: (handler) =>
      health.state.handlers.find(({ name }) => name === handler)?.recursiveReadOnlyMounts ?? false,
    subscribe: (listener) => {
      const stops = [
        health.subscribe(listener),
        nodeStore.subscribe(({ old, object }) => {
          if (concernsPods(old) !== concernsPods(object)) listener();
        }),
      ];
      return () => {
        for (const stop of stops) stop();
      };
    },
  };
}

// Heartbeats change the Node every few seconds; pods only care for this much of it.
function concernsPods(node: Node | undefined): string {
  return JSON.stringify([node?.status?.addresses, node?.status?.allocatable]);
}
