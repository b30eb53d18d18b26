import type { Condition, Node } from "../kube/types.ts";

/** What the Ready condition depends on, in the order in which problems are shown. */
export interface Readiness {
  /** Texts of runtime-health's `runtimeProblems`, and of the pod workers' own health. */
  runtime: readonly string[];
  network: readonly string[];
  storage: readonly string[];
  shutdown: readonly string[];
  /** Resources that the node should have but has not. */
  missingCapacity: readonly string[];
  cpuCFSQuotaSupported: boolean;
}

/** True for the kinds of pressure that the node is under. */
export interface Pressure {
  memory: boolean;
  disk: boolean;
  pid: boolean;
}

export interface NodeEvent {
  type: "Normal" | "Warning";
  reason: string;
  message: string;
}

const pressures = [
  {
    key: "memory",
    type: "MemoryPressure",
    yes: ["KubeletHasInsufficientMemory", "kubelet has insufficient memory available", "NodeHasInsufficientMemory"],
    no: ["KubeletHasSufficientMemory", "kubelet has sufficient memory available", "NodeHasSufficientMemory"],
  },
  {
    key: "disk",
    type: "DiskPressure",
    yes: ["KubeletHasDiskPressure", "kubelet has disk pressure", "NodeHasDiskPressure"],
    no: ["KubeletHasNoDiskPressure", "kubelet has no disk pressure", "NodeHasNoDiskPressure"],
  },
  {
    key: "pid",
    type: "PIDPressure",
    yes: ["KubeletHasInsufficientPID", "kubelet has insufficient PID available", "NodeHasInsufficientPID"],
    no: ["KubeletHasSufficientPID", "kubelet has sufficient PID available", "NodeHasSufficientPID"],
  },
] as const;

/**
 * The node's conditions after this heartbeat. Conditions of others (NetworkUnavailable) keep their place; Ready comes
 * after our own others, because tools look at the last one.
 */
export function buildConditions(
  old: readonly Condition[],
  pressure: Pressure,
  readiness: Readiness,
  nowText: string,
): Condition[] {
  const wanted: Condition[] = [
    ...pressures.map(({ key, type, yes, no }): Condition => {
      const [reason, message] = pressure[key] ? yes : no;
      return { type, status: pressure[key] ? "True" : "False", reason, message };
    }),
    readyCondition(readiness),
  ];
  const own = new Map(wanted.map((condition) => [condition.type, condition]));
  const stamp = (condition: Condition): Condition => {
    const before = old.find(({ type }) => type === condition.type);
    const since = before?.status === condition.status ? before.lastTransitionTime : undefined;
    return { ...condition, lastHeartbeatTime: nowText, lastTransitionTime: since ?? nowText };
  };
  const kept = old.map((condition) => {
    const mine = own.get(condition.type);
    return mine === undefined ? condition : stamp(mine);
  });
  const added = wanted.filter(({ type }) => !old.some((condition) => condition.type === type)).map(stamp);
  return [...kept, ...added];
}

/** Ready, or why not. Times are not set. */
export function readyCondition(readiness: Readiness): Condition {
  const { runtime, network, storage, shutdown, missingCapacity, cpuCFSQuotaSupported } = readiness;
  const capacity =
    missingCapacity.length === 0 ? [] : [`missing node capacity for resources: ${missingCapacity.join(", ")}`];
  const problems = [...new Set([...runtime, ...network, ...storage, ...shutdown, ...capacity])];
  if (problems.length > 0) {
    const message = problems.length === 1 ? (problems[0] ?? "") : `[${problems.join(", ")}]`;
    return { type: "Ready", status: "False", reason: "KubeletNotReady", message };
  }
  const warning = cpuCFSQuotaSupported ? "" : ". WARNING: CPU hardcapping unsupported";
  return {
    type: "Ready",
    status: "True",
    reason: "KubeletReady",
    message: `kubelet is posting ready status${warning}`,
  };
}

/**
 * Events for what changed between two states of the Node, to be recorded once the new one is stored. The first
 * sight of a pressure condition is told, the first sight of Ready is not: it says nothing new to anybody.
 */
export function nodeEvents(nodeName: string, old: Node | undefined, now: Node): NodeEvent[] {
  const statusOf = (node: Node | undefined, type: string) =>
    node?.status?.conditions?.find((condition) => condition.type === type)?.status;
  const reasons: string[] = pressures.flatMap(({ type, yes, no }) => {
    const status = statusOf(now, type);
    return status === undefined || status === statusOf(old, type) ? [] : [status === "True" ? yes[2] : no[2]];
  });
  const readyBefore = statusOf(old, "Ready");
  const ready = statusOf(now, "Ready");
  if (readyBefore !== undefined && ready !== undefined && readyBefore !== ready) {
    reasons.push(ready === "True" ? "NodeReady" : "NodeNotReady");
  }
  return reasons.map((reason) => nodeEvent(nodeName, reason));
}

/** A Normal event that says the node's state in the usual words. */
export function nodeEvent(nodeName: string, reason: string): NodeEvent {
  return { type: "Normal", reason, message: `Node ${nodeName} status is now: ${reason}` };
}
