import { join } from "node:path";
import type { ExplainedEntry, Explanation, PodLine } from "../pods/explain.ts";

/** Where the running agent answers, below its root directory. */
export function socketPathOf(rootDir: string): string {
  return join(rootDir, "nodelet.sock");
}

/** Told with every answer, so that an agent and a command of different versions notice. */
export const protocolVersion = 1;

/** Answer to `GET /pods`. */
export interface PodsAnswer {
  version: typeof protocolVersion;
  node: string;
  now: string;
  /** The agent has not come to its pods yet. */
  isStarting: boolean;
  /** Why not all of them may be known yet; "" if they are. */
  agentWaitsFor: string;
  pods: PodLine[];
}

/** Answer to `GET /pods/NAMESPACE/NAME`. */
export type PodAnswer =
  | { version: typeof protocolVersion; kind: "found"; explanation: Explanation }
  | {
      version: typeof protocolVersion;
      kind: "unknown";
      node: string;
      now: string;
      isStarting: boolean;
      agentWaitsFor: string;
      /** `namespace/name` of pods on the node that may be meant. */
      similar: string[];
      /** What happened to a pod of that name that has left the node. */
      ended?: { uid: string; timeline: ExplainedEntry[]; omitted: number };
    };
