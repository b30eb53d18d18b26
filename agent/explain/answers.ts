import type { Clock } from "../lib/clock.ts";
import { explainPod, explainTimeline, type PodFacts, type PodLine, podLine } from "../pods/explain.ts";
import type { Timeline } from "../pods/timeline.ts";
import { type PodAnswer, type PodsAnswer, protocolVersion } from "./protocol.ts";

/** What answers are made of. */
export interface ExplainSource {
  nodeName: string;
  clock: Clock;
  /** Undefined as long as the agent runs no pods. */
  facts(): PodFacts[] | undefined;
  /** What the agent waits for before it knows all of its pods, for people; "" once it does. */
  waitsFor(): string;
  /** Of a pod that has left the node. */
  findEnded(namespace: string, name: string): Timeline | undefined;
  /** Resolves when it is time to go on, so that a long answer holds up nothing else; undefined: at once. */
  breathe(): Promise<void> | undefined;
}

// A hundred times what a node runs; an answer has to end somewhere.
export const podsMax = 10_000;
// More would be no hint.
export const similarMax = 5;

/** One line for each pod, by namespace and name. */
export async function answerPods(source: ExplainSource): Promise<PodsAnswer> {
  const { nodeName, clock, facts, waitsFor, breathe } = source;
  const all = facts();
  const lines: PodLine[] = [];
  for (const one of (all ?? []).slice(0, podsMax)) {
    await breathe();
    lines.push(podLine(one, clock.now()));
  }
  const key = ({ namespace, name }: PodLine) => `${namespace}/${name}`;
  return {
    version: protocolVersion,
    node: nodeName,
    now: new Date(clock.now()).toISOString(),
    isStarting: all === undefined,
    agentWaitsFor: waitsFor(),
    pods: lines.sort((a, b) => (key(a) < key(b) ? -1 : 1)),
  };
}

/** Everything about one pod. Of two with the same name, the one that is not about to leave is meant. */
export function answerPod(source: ExplainSource, namespace: string, name: string): PodAnswer {
  const { nodeName, clock, waitsFor } = source;
  const all = source.facts();
  const isNamed = ({ pod: { metadata } }: PodFacts) => metadata.namespace === namespace && metadata.name === name;
  const found = (all ?? []).filter(isNamed);
  const meant = found.find(({ local }) => local !== undefined && local.terminating === undefined) ?? found.at(-1);
  if (meant !== undefined) {
    return { version: protocolVersion, kind: "found", explanation: explainPod(meant, clock.now()) };
  }
  const ended = source.findEnded(namespace, name);
  return {
    version: protocolVersion,
    kind: "unknown",
    node: nodeName,
    now: new Date(clock.now()).toISOString(),
    isStarting: all === undefined,
    agentWaitsFor: waitsFor(),
    similar: similarTo(name, all ?? []),
    ...(ended === undefined
      ? {}
      : { ended: { uid: ended.podUID, timeline: explainTimeline(ended.entries), omitted: ended.omitted } }),
  };
}

// The same name elsewhere, or the name of what made the pod instead of the pod's own.
function similarTo(name: string, facts: readonly PodFacts[]): string[] {
  const found: string[] = [];
  for (const { pod } of facts) {
    if (found.length === similarMax) break;
    const { metadata } = pod;
    const isSimilar = metadata.name === name || metadata.name.startsWith(`${name}-`);
    if (isSimilar) found.push(`${metadata.namespace}/${metadata.name}`);
  }
  return found;
}
