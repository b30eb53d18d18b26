import { isSidecar } from "../kube/pod-resources.ts";
import type { Condition, ContainerStatus, Pod, PodPhase } from "../kube/types.ts";
import type { PodEnding } from "./ending.ts";
import { canRestartAll } from "./restart-all.ts";
import { resizeConditionTypes } from "./resize/conditions.ts";

/** Condition types that the agent writes; all others belong to someone else and are kept as they are. */
export const ownConditionTypes: readonly string[] = [
  "PodReadyToStartContainers",
  "Initialized",
  "Ready",
  "ContainersReady",
  "PodScheduled",
  "AllContainersRestarting",
  ...resizeConditionTypes,
];

export interface ConditionInputs {
  pod: Pod;
  phase: PodPhase;
  initStatuses: readonly ContainerStatus[];
  statuses: readonly ContainerStatus[];
  /** undefined: nobody is told. */
  hasSandbox: boolean | undefined;
  /** All containers are being stopped and removed to begin anew. */
  isRestartingAll: boolean;
  /** Conditions as last reported or as the API server has them; those of others (readiness gates) count, too. */
  previous: readonly Condition[];
}

type Verdict = Pick<Condition, "status"> & { reason?: string; message?: string };

/** The agent's own conditions, in the order users know, with transition times carried over. */
export function podConditions(inputs: ConditionInputs, now: string): Condition[] {
  const { pod, previous } = inputs;
  const containersReady = containersReadyVerdict(inputs);
  const verdicts: [type: string, verdict: Verdict][] = [
    ["Initialized", initializedVerdict(inputs)],
    ["Ready", readyVerdict(inputs, containersReady)],
    ["ContainersReady", containersReady],
    ["PodScheduled", { status: "True" }],
  ];
  if (inputs.hasSandbox !== undefined) {
    verdicts.unshift(["PodReadyToStartContainers", { status: inputs.hasSandbox ? "True" : "False" }]);
  }
  if (canRestartAll(pod)) verdicts.push(["AllContainersRestarting", restartingVerdict(inputs)]);
  return verdicts.map(([type, verdict]) => {
    const old = previous.find((condition) => condition.type === type);
    return {
      type,
      ...(pod.metadata.generation === undefined ? {} : { observedGeneration: pod.metadata.generation }),
      ...verdict,
      lastProbeTime: null,
      lastTransitionTime: old?.status === verdict.status ? (old.lastTransitionTime ?? now) : now,
    };
  });
}

function restartingVerdict({ isRestartingAll, phase }: ConditionInputs): Verdict {
  if (phase === "Succeeded") return { status: "False", reason: "PodCompleted" };
  if (phase === "Failed") return { status: "False", reason: "PodFailed" };
  if (!isRestartingAll) return { status: "False" };
  return {
    status: "True",
    reason: "RestartAllContainersStarted",
    message: "container exited with restart policy rule",
  };
}

/** Conditions of others, with the one that says that the node, and not the pod, is why the pod ends. */
export function disruptionTarget(
  pod: Pod,
  ending: PodEnding | undefined,
  foreign: readonly Condition[],
  now: string,
): Condition[] {
  if (ending?.disruption === undefined) return [...foreign];
  const { generation } = pod.metadata;
  return [
    ...foreign.filter(({ type }) => type !== "DisruptionTarget"),
    {
      type: "DisruptionTarget",
      status: "True",
      reason: "TerminationByKubelet",
      message: ending.disruption,
      lastProbeTime: null,
      lastTransitionTime: now,
      ...(generation === undefined ? {} : { observedGeneration: generation }),
    },
  ];
}

function containersReadyVerdict({ pod, phase, initStatuses, statuses }: ConditionInputs): Verdict {
  if (phase === "Succeeded") return { status: "False", reason: "PodCompleted" };
  if (phase === "Failed") return { status: "False", reason: "PodFailed" };
  const unknown: string[] = [];
  const unready: string[] = [];
  const judge = (name: string, status: ContainerStatus | undefined) => {
    if (status === undefined) unknown.push(name);
    else if (!status.ready) unready.push(name);
  };
  for (const container of pod.spec.initContainers ?? []) {
    if (isSidecar(container)) {
      judge(
        container.name,
        initStatuses.find(({ name }) => name === container.name),
      );
    }
  }
  for (const { name } of pod.spec.containers) {
    judge(
      name,
      statuses.find((status) => status.name === name),
    );
  }
  return verdictOf("ContainersNotReady", [
    ["containers with unknown status", unknown],
    ["containers with unready status", unready],
  ]);
}

function readyVerdict({ pod, previous }: ConditionInputs, containersReady: Verdict): Verdict {
  if (containersReady.status !== "True") return containersReady;
  const messages = (pod.spec.readinessGates ?? []).flatMap(({ conditionType }) => {
    const condition = previous.find(({ type }) => type === conditionType);
    if (condition === undefined) {
      return [`corresponding condition of pod readiness gate "${conditionType}" does not exist.`];
    }
    return condition.status === "True"
      ? []
      : [`the status of pod readiness gate "${conditionType}" is not "True", but ${condition.status}`];
  });
  if (messages.length === 0) return { status: "True" };
  return { status: "False", reason: "ReadinessGatesNotReady", message: messages.join(", ") };
}

function initializedVerdict({ pod, phase, initStatuses, statuses, previous }: ConditionInputs): Verdict {
  const inits = pod.spec.initContainers ?? [];
  if (phase === "Succeeded") return { status: "True", reason: "PodCompleted" };
  // What was initialized once stays so: a restart of all containers is no new pod.
  if (previous.some(({ type, status }) => type === "Initialized" && status === "True")) return { status: "True" };
  const hasRun = statuses.some(
    ({ state, lastState }) =>
      state?.running !== undefined || state?.terminated !== undefined || lastState?.terminated !== undefined,
  );
  if (hasRun) return { status: "True" };
  const unknown: string[] = [];
  const incomplete: string[] = [];
  for (const container of inits) {
    const status = initStatuses.find(({ name }) => name === container.name);
    if (status === undefined) unknown.push(container.name);
    else if (isSidecar(container) ? status.started !== true : !status.ready) incomplete.push(container.name);
  }
  return verdictOf("ContainersNotInitialized", [
    ["containers with unknown status", unknown],
    ["containers with incomplete status", incomplete],
  ]);
}

function verdictOf(reason: string, lists: [text: string, names: string[]][]): Verdict {
  const messages = lists.flatMap(([text, names]) => (names.length === 0 ? [] : [`${text}: [${names.join(" ")}]`]));
  if (messages.length === 0) return { status: "True" };
  return { status: "False", reason, message: messages.join(", ") };
}
